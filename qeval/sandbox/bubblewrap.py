"""Lanes inside bubblewrap (``bwrap``), for machines that allow namespaces to that program only.

The same walls inside a process, and the same system to see; but there is one pid namespace for the
whole lane (the program is alone with its judge, which its filter keeps it from reaching), and files in
/tmp are limited by their bytes only.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from qeval.errors import SandboxError
from qeval.sandbox.base import Limits
from qeval.sandbox.kernel import NAMESPACES
from qeval.sandbox.lane import HERE, Launch, hidden_paths, interpreter, shown_paths
from qeval.sandbox.pool import LaneSandbox


class Bubblewrap(LaneSandbox):
    name: ClassVar[str] = "bubblewrap"
    required: ClassVar[frozenset[str]] = frozenset(
        {f"{name} namespace" for name in NAMESPACES}
        | {"read-only system", "no capabilities", "no new privileges", "seccomp", "rlimits"}
    )

    def __init__(self) -> None:
        """Raises SandboxError when there is no ``bwrap`` in PATH."""
        program = shutil.which("bwrap")
        if program is None:
            raise SandboxError("bubblewrap is not installed")
        self._bwrap = program
        super().__init__()

    @contextmanager
    def launch(self, limits: Limits) -> Iterator[Launch]:
        python = interpreter()
        command = [
            self._bwrap,
            *("--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534"),
            *("--cap-drop", "ALL", "--die-with-parent", "--hostname", "sandbox"),
            *_system(python),
            *(
                "--dev",
                "/dev",
                "--size",
                str(limits.scratch_bytes),
                "--tmpfs",
                "/tmp",
                "--chdir",
                "/tmp",
            ),
            *("--remount-ro", "/dev", "--remount-ro", "/", "--"),
        ]
        yield Launch(prefix=tuple(command), own="/tmp", scratch=None, walled=True)


def _system(python: Path) -> list[str]:
    """Read-only binds of what an interpreter needs, and of the code that runs inside."""
    words = []
    for name in shown_paths(python):
        path = Path(name)
        if path.is_symlink():
            words += ["--symlink", str(path.readlink()), name]
        elif path.exists():
            words += ["--ro-bind", name, name]
    for name in hidden_paths(python):
        if Path(name).is_dir():
            words += ["--tmpfs", name, "--remount-ro", name]
    return [
        *words,
        "--ro-bind",
        str(python),
        str(python),
        "--ro-bind",
        str(HERE / "inside"),
        str(HERE / "inside"),
    ]
