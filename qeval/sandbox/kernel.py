"""Lanes behind walls made of the kernel's own calls (inside/namespaces.py): nothing to install.

Needs Linux 5.13 and user namespaces that an ordinary user may make (or root). Some distributions and
container settings forbid them; bubblewrap.py is the way out where they allow it to that program.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from qeval.sandbox.base import Limits
from qeval.sandbox.lane import Launch
from qeval.sandbox.pool import LaneSandbox
from qeval.sandbox.system import SCRATCH, system

NAMESPACES = ("user", "mount", "pid", "network", "ipc", "uts")


class KernelSandbox(LaneSandbox):
    name: ClassVar[str] = "kernel"
    required: ClassVar[frozenset[str]] = frozenset(
        {f"{name} namespace" for name in NAMESPACES}
        | {"read-only system", "limited scratch", "no capabilities", "no new privileges"}
        | {"seccomp", "rlimits"}
    )

    @contextmanager
    def launch(self, limits: Limits) -> Iterator[Launch]:
        options = f"mode=700,size={limits.scratch_bytes},nr_inodes={limits.scratch_files}"
        yield Launch((), str(system().python), own=SCRATCH, scratch=options, walled=True)
