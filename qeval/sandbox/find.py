"""Choose a sandbox by trying it: a program has to pass in it, not merely its command to exist."""

from __future__ import annotations

import shutil

from qeval.errors import SandboxError
from qeval.sandbox.base import Limits, Program, Sandbox
from qeval.sandbox.bubblewrap import Bubblewrap
from qeval.sandbox.weak import WeakSandbox

TRIAL = Program("trial", "def one(): return 1", "def check(f): assert f() == 1", "check(one)")
INSTALLERS = {"apt-get": "apt-get install", "dnf": "dnf install", "pacman": "pacman -S"}


def find_sandbox(*, weak: bool = False) -> Sandbox:
    """The sandbox of this machine; with ``weak``, a bare subprocess where there is none.

    Raises:
        SandboxError: none works; names what failed and the command that installs one.
    """
    try:
        return _tried(Bubblewrap())
    except SandboxError as err:
        if weak:
            return _tried(WeakSandbox())
        raise SandboxError(
            f"no sandbox to run generated code in ({err}): {_install_command()}, or pass "
            "--allow-weak-sandbox to run it unprotected"
        ) from err


def _tried(sandbox: Sandbox) -> Sandbox:
    for verdict in sandbox.run([TRIAL], Limits(timeout_s=30.0), workers=1):
        if not verdict.passed:
            raise SandboxError(f"{sandbox.name} does not work here: {verdict.status} {verdict.detail}")
    return sandbox


def _install_command() -> str:
    for tool, command in INSTALLERS.items():
        if shutil.which(tool):
            return f"{command} bubblewrap"
    return "install bubblewrap 0.8 or newer"
