"""Lanes inside bubblewrap (``bwrap``), for machines that allow namespaces to that program only.

The same walls inside a process, and the same system to see; but there is one pid namespace for the
whole lane (the program is alone with its judge, which its filter keeps it from reaching), and files in
/tmp are limited by their bytes only.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from qeval.core.errors import SandboxError
from qeval.sandbox.base import Limits
from qeval.sandbox.kernel import NAMESPACES
from qeval.sandbox.lane import HERE, Launch
from qeval.sandbox.pool import LaneSandbox
from qeval.sandbox.system import SCRATCH, System, system

INSIDE = "/sandbox"  # where the package ``inside`` is shown: its own path may lie below /tmp


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
        found = system()
        command = [
            self._bwrap,
            *("--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534"),
            *("--cap-drop", "ALL", "--die-with-parent", "--hostname", "sandbox"),
            *_shown(found),
            *("--dev", "/dev", "--size", str(limits.scratch_bytes), "--perms", "0700"),
            *("--tmpfs", SCRATCH, "--chdir", SCRATCH),
            *("--remount-ro", "/dev", "--remount-ro", "/", "--"),
        ]
        yield Launch(tuple(command), found.inside_python, SCRATCH, None, walled=True, here=INSIDE)


def _shown(found: System) -> list[str]:
    """Read-only binds of what an interpreter needs, and of the code that runs inside."""
    python = (found.inside_python, str(found.python))
    files = [*found.files, python, (f"{INSIDE}/inside", str(HERE / "inside"))]
    words = [word for link, target in found.links for word in ("--symlink", target, link)]
    words += [word for inside, outside in files for word in ("--ro-bind", outside, inside)]
    return words + [word for name in found.hidden for word in ("--tmpfs", name, "--remount-ro", name)]
