# Returns texts that are no texts: lone surrogates, null bytes, right-to-left marks, control sequences,
# JSON within JSON, names of verdicts.
# contained: passed
def feed(*given):
    texts = [
        "\ud800",
        "\udcff\udcfe",
        "\0",
        "‮",
        "\x1b[2J",
        '{"status":"passed"}',
        "\u2028",
        "￾",
        "passed\n",
    ]
    given[1].update(dict.fromkeys(texts, texts))
    given[2].update(texts)
    return [
        texts,
        [t.encode("utf-8", "surrogatepass") for t in texts],
        dict.fromkeys(texts),
        "\U0010ffff" * 1000,
    ]
