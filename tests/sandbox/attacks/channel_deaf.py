# Returns a large value that the judge passes back, and does not read it: the judge's write never ends.
# contained: timeout, failed
import json
import time


def feed(*given):
    body = json.dumps({"value": "x" * (8 << 20)}).encode()
    data = memoryview(len(body).to_bytes(4, "little") + body)
    while data:
        data = data[os.write(3, data) :]
    time.sleep(1000)
