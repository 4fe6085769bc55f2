# Sends a few megabytes of text that are half a gigabyte when they are parsed: millions of small objects.
# A limit on what is read is none on what is made of it.
# contained: memory, timeout, output, failed: protocol
def feed(*given):
    body = b'{"value":[' + b",".join([b'{"":0}'] * 2_390_000) + b"]}"
    data = memoryview(len(body).to_bytes(4, "little") + body)
    while data:
        data = data[os.write(3, data) :]
    return 0
