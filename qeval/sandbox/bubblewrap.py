"""Programs inside bubblewrap (``bwrap``): namespaces, a read-only system, nothing of the user.

A program sees /usr and the interpreter's library read-only, its own /proc and /dev, and /tmp, which
is empty, limited in size, and gone with it. No home, no /etc but the linker's cache, no network but a
loopback of its own, no environment, no capabilities, no other process. The user inside is ``nobody``
of a user namespace of its own, also when qeval runs as root.

Not covered: the CPU's and the kernel's own bugs, and a program that starts thousands of threads for
as long as its time lasts. bubblewrap 0.8 (2023) is the oldest that can limit the size of /tmp.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qeval.errors import SandboxError
from qeval.sandbox.base import Limits
from qeval.sandbox.process import RUNNER, ProcessSandbox, interpreter, pipe_holding
from qeval.sandbox.seccomp import no_new_processes

INNER_RUNNER = "/runner.py"
NAMESPACES = ("user", "mount", "pid", "net", "ipc", "uts")


class Bubblewrap(ProcessSandbox):
    name = "bubblewrap"
    own_user_namespace = True

    def __init__(self) -> None:
        """Raises SandboxError when there is no ``bwrap`` in PATH."""
        program = shutil.which("bwrap")
        if program is None:
            raise SandboxError("bubblewrap is not installed")
        self._bwrap = program
        self._python = interpreter()
        self._seccomp = no_new_processes()
        kernel = tuple(f"{name} namespace" for name in NAMESPACES)
        walls = ("read-only system", "no capabilities", "no new privileges", "rlimits")
        self.layers = (*kernel, *walls, *(["seccomp"] if self._seccomp else []))

    @contextmanager
    def _process(self, request: int, secret: int, limits: Limits) -> Iterator[subprocess.Popen[bytes]]:
        with pipe_holding(self._seccomp or b"") as seccomp:
            process = subprocess.Popen(
                self._command(secret, seccomp, limits),
                stdin=request,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[secret, seccomp],
                env={},  # the program can read bwrap's own, which is process 1 inside
            )
        with process:
            try:
                yield process
            finally:
                process.kill()  # --die-with-parent: everything in its pid namespace dies, too

    def _command(self, secret: int, seccomp: int, limits: Limits) -> list[str]:
        return [
            self._bwrap,
            *("--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534"),
            *("--cap-drop", "ALL", "--die-with-parent", "--new-session", "--hostname", "sandbox"),
            *_environment(self._python),
            *_system(self._python),
            *("--ro-bind", str(RUNNER), INNER_RUNNER),
            *("--proc", "/proc", "--dev", "/dev"),
            *("--size", str(limits.scratch_bytes), "--tmpfs", "/tmp", "--chdir", "/tmp"),
            *("--remount-ro", "/dev", "--remount-ro", "/"),
            *(["--seccomp", str(seccomp)] if self._seccomp else []),
            *("--", str(self._python), "-s", "-S", "-B", INNER_RUNNER, str(secret)),
        ]


def _environment(python: Path) -> list[str]:
    values = {
        "PATH": "/usr/bin:/bin",
        "HOME": "/tmp",
        "TMPDIR": "/tmp",
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",  # the order of a set is the same every time
        "LD_LIBRARY_PATH": str(python.parent.parent / "lib"),  # a shared libpython beside it
    }
    return ["--clearenv", *(word for pair in values.items() for word in ("--setenv", *pair))]


def _system(python: Path) -> list[str]:
    """Read-only binds of what an interpreter needs: of its own prefix only binaries and libraries."""
    words = ["--ro-bind", "/usr", "/usr"]
    for path in map(Path, ("/bin", "/sbin", "/lib", "/lib32", "/lib64")):
        if path.is_symlink():
            words += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            words += ["--ro-bind", str(path), str(path)]
    for name in ("/etc/ld.so.cache", "/etc/alternatives"):
        words += ["--ro-bind-try", name, name]
    prefix = python.parent.parent
    if not prefix.is_relative_to("/usr"):
        for part in sorted({"bin", "lib", sys.platlibdir}):
            words += ["--ro-bind-try", str(prefix / part), str(prefix / part)]
    return words
