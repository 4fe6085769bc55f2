# Sends JSON nested as deeply as the parser just takes, which takes more of Python's stack to decode.
# contained: failed, passed
import json
import sys

DEPTHS = [300, 600, 900, 950, 990, 2000, 100_000]


def feed(*given):
    depth = DEPTHS.pop(0) if DEPTHS else 10
    body = b'{"value":' + b'{"t":[' * depth + b"]}" * depth + b"}"
    os.write(3, len(body).to_bytes(4, "little") + body)
    return 0
