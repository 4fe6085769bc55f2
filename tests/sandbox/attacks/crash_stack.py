# Raises the limit of recursion and recurses through C, until there is no stack left.
# contained: killed, failed: RecursionError, memory
import sys

sys.setrecursionlimit(1 << 30)


class Endless:
    def __repr__(self):
        return repr(self)

    def __eq__(self, other):
        return self == other

    __hash__ = None


def attack():
    repr(Endless())
