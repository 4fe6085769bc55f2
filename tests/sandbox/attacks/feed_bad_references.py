# Returns references to objects that do not exist, to very many of them, and to itself.
# contained: passed, memory, output, timeout, failed
def feed(*given):
    body = b'{"value":[' + b",".join(b'{"r":%d}' % (i % 20_000 - 5) for i in range(50_000)) + b"]}"
    data = memoryview(len(body).to_bytes(4, "little") + body)
    while data:
        data = data[os.write(3, data) :]
    return feed
