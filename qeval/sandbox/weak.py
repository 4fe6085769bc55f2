"""Lanes without namespaces, for machines that have no sandbox. It is NOT one.

Where the kernel has them, seccomp and Landlock still keep a program from the user's files, other
processes and the network; but it shares the machine's process table, and its folder has no limit but
that on the size of one file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from qeval.sandbox.base import Limits
from qeval.sandbox.lane import Launch
from qeval.sandbox.pool import LaneSandbox
from qeval.sandbox.system import system


class WeakSandbox(LaneSandbox):
    name: ClassVar[str] = "weak"
    required: ClassVar[frozenset[str]] = frozenset({"rlimits"})

    @contextmanager
    def launch(self, limits: Limits) -> Iterator[Launch]:
        with tempfile.TemporaryDirectory(prefix="qeval-weak-", ignore_cleanup_errors=True) as folder:
            yield Launch((), str(system().python), own=folder, scratch=None, walled=False)
