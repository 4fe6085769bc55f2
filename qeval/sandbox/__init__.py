"""Running generated code: programs in, verdicts out. Nothing here knows a model or a benchmark.

    sandbox = find_sandbox()
    for verdict in sandbox.run(programs, Limits(timeout_s=3.0), workers=2):
        ...

No generated code is ever executed in a process of qeval itself. ``inside/`` is what runs behind the
walls; ``lane.py`` talks to it; docs/sandbox.md is the threat model.
"""

from qeval.sandbox.base import Limits, Program, Sandbox, Verdict, Verdicts
from qeval.sandbox.find import find_sandbox
from qeval.sandbox.host_limits import allowed_here

__all__ = ["Limits", "Program", "Sandbox", "Verdict", "Verdicts", "allowed_here", "find_sandbox"]
