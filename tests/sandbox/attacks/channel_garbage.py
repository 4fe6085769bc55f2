# Answers with what is not an answer: no JSON, no object, wrong types in every place, references to
# objects that it was never given.
# A judge that trusts the form of what it reads dies of it, and its death must not be a pass.
# contained: failed, output, memory
import json
import random

random.seed()
VALUES = [
    None, True, 0, -1, 1e400, "", "passed", [], {}, {"t": 1}, {"s": [[]]}, {"d": [1]}, {"d": [[[], 1]]},
    {"i": 5}, {"i": "0x"}, {"b": "zz"}, {"c": []}, {"g": [0, 0, 0]}, {"g": [1]}, {"r": -1}, {"r": True},
    {"r": 10**30}, {"r": "1"}, {"r": [1]}, {"z": {}}, {"": 0}, {"t": [], "s": []}, {"r": {"r": 0}}, {"a": None},
]  # fmt: skip
KEYS = ["value", "args", "end", "error", "text", "status", "final", "broken"]


def solve(x):
    choice = random.randrange(4)
    if choice == 0:
        body = random.randbytes(random.randrange(200))
    elif choice == 1:
        body = json.dumps(random.choice(VALUES)).encode()
    else:
        body = json.dumps({random.choice(KEYS): random.choice(VALUES) for _ in range(4)}).encode()
    os.write(3, len(body).to_bytes(4, "little") + body)
    return 0
