# Sends a few megabytes of text that become a hundred times as much when they are decoded: millions of
# empty sets and dicts.
# contained: memory, timeout, output, failed: MemoryError, passed
def feed(*given):
    body = b'{"value":[' + b",".join([b'{"s":[]}'] * 1_700_000) + b"]}"
    data = memoryview(len(body).to_bytes(4, "little") + body)
    while data:
        data = data[os.write(3, data) :]
    return 0
