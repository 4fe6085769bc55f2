# Returns a set of numbers that all have the same hash: to put it together takes the square of its size.
# The reader does the work, in its own time.
# contained: timeout, output, memory
def feed(*given):
    prime = (1 << 61) - 1
    forms = b",".join(b'{"i":"%x"}' % (i * prime) for i in range(1, 400_000))
    body = b'{"value":{"s":[' + forms + b"]}}"
    data = memoryview(len(body).to_bytes(4, "little") + body)
    while data:
        data = data[os.write(3, data) :]
    return 0
