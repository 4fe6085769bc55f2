"""What most programs import, imported before anything else: it is then in memory that all of them
share. Any more would make every fork slower by more than the imports it saves.

``random`` asks, when it is imported, to draw a new seed after every fork: for nothing, program.py sets
one. So this module keeps it from that, and comes before all others that import it.
"""

from __future__ import annotations

import os

PRELOADED = ("collections", "functools", "itertools", "math", "random", "re", "string", "typing")

_register, os.register_at_fork = os.register_at_fork, lambda **_: None
for _name in PRELOADED:
    __import__(_name)
os.register_at_fork = _register
