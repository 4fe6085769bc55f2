# Sends without end, faster than it is asked: a stream of valid answers that nobody wanted.
# contained: failed, output, timeout
def solve(x):
    body = b'{"value":0}'
    block = (len(body).to_bytes(4, "little") + body) * 4096
    while True:
        os.write(3, block)
