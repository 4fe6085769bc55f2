"""Choose a sandbox by trying it: its walls have to stand, and a program has to pass in it."""

from __future__ import annotations

import shutil

from qeval.core.errors import SandboxError
from qeval.sandbox.base import Sandbox
from qeval.sandbox.bubblewrap import Bubblewrap
from qeval.sandbox.host_limits import HostLimitError
from qeval.sandbox.kernel import KernelSandbox
from qeval.sandbox.weak import WeakSandbox

INSTALLERS = {"apt-get": "apt-get install", "dnf": "dnf install", "pacman": "pacman -S"}


def find_sandbox(*, weak: bool = False) -> Sandbox:
    """The best sandbox of this machine; with ``weak``, bare processes where there is none.

    Raises:
        SandboxError: none works; names what failed and what to do.
        HostLimitError: a limit of this shell prevents it; names it.
    """
    reasons = []
    for kind in (KernelSandbox, Bubblewrap):
        try:
            return kind()
        except HostLimitError:  # of any kind
            raise
        except SandboxError as err:
            reasons.append(str(err))
    if weak:
        return WeakSandbox()
    raise SandboxError(
        f"no sandbox to run generated code in ({'; '.join(reasons)}): allow user namespaces, "
        f"{install_command()}, or pass --allow-weak-sandbox to run it with fewer walls"
    )


def install_command() -> str:
    """What installs bubblewrap on this machine."""
    for tool, command in INSTALLERS.items():
        if shutil.which(tool):
            return f"{command} bubblewrap"
    return "install bubblewrap 0.8 or newer"
