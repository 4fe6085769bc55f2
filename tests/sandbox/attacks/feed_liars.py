# Returns objects that change while they are looked at: lists that grow while they are copied, dicts that
# lose keys, subclasses whose methods do something else.
# contained: failed, passed, timeout, output, memory
import threading
import time

SHARED, TABLE = list(range(1000)), {i: i for i in range(1000)}


def churn():
    until = time.monotonic() + 0.4
    while time.monotonic() < until:
        SHARED.extend(range(1000))
        TABLE.update({len(TABLE): SHARED[:3]})
        del SHARED[1000:]
        TABLE.pop(len(TABLE) - 1, None)


for _ in range(4):
    threading.Thread(target=churn, daemon=True).start()


class Liar(list):
    def __iter__(self):
        SHARED.append(1)
        return iter(SHARED)

    def __len__(self):
        return 1 << 60


def feed(*given):
    return [SHARED, TABLE, Liar([1, 2]), [SHARED] * 3]
