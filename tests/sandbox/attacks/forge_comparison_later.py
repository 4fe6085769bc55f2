# Returns a list and changes it afterwards, from a thread, until it is what the test wants.
# In one interpreter the value is the same object on both sides.
# contained: failed: AssertionError
import threading

VALUES = []


def change():
    while True:
        for value in VALUES:
            value[:] = [4] if value != [4] else [49]


threading.Thread(target=change, daemon=True).start()


def solve(x):
    VALUES.append([0])
    return VALUES[-1]
