# Ends the process with success when the exception that says "failed" is freed.
# contained: failed
# in the open: succeeds
import os


class Bomb:
    def __del__(self):
        os._exit(0)


def solve(x):
    bomb = Bomb()
    raise ValueError(bomb)
