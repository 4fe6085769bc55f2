# Stays in one call of the C library that looks at no signal: a regular expression that backtracks for
# ages, a power with as many digits as there is memory.
# A handler in Python is never run.
# contained: timeout, memory
import re
import signal

signal.signal(signal.SIGALRM, lambda *_: None)


def attack():
    re.match(r"(a*)*b", "a" * 60)
    return None
