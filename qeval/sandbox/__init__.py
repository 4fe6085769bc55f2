"""Running generated code: programs in, verdicts out. Nothing here knows a model or a benchmark.

    sandbox = find_sandbox()
    for verdict in sandbox.run(programs, Limits(timeout_s=3.0), workers=2):
        ...

No generated code is ever executed in a process of qeval itself: see ``process.py`` for the way a
program runs and how its verdict is proved, ``bubblewrap.py`` for the walls around it.
"""

from qeval.sandbox.base import Limits, Program, Sandbox, Verdict
from qeval.sandbox.find import find_sandbox

__all__ = ["Limits", "Program", "Sandbox", "Verdict", "find_sandbox"]
