"""A bare subprocess with resource limits, for machines that have no sandbox. It is NOT one.

It stops accidents (endless loops, memory hogs, a closed standard input), not intentions: a program
can read the user's files, write where the user can, and use the network.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from qeval.sandbox.base import Limits
from qeval.sandbox.process import RUNNER, ProcessSandbox, interpreter


class WeakSandbox(ProcessSandbox):
    name = "weak"
    own_user_namespace = False
    layers: tuple[str, ...] = ("rlimits",)

    @contextmanager
    def _process(self, request: int, secret: int, limits: Limits) -> Iterator[subprocess.Popen[bytes]]:
        with tempfile.TemporaryDirectory(prefix="qeval-weak-", ignore_cleanup_errors=True) as folder:
            process = subprocess.Popen(
                [str(interpreter()), "-s", "-S", "-B", str(RUNNER), str(secret)],
                stdin=request,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[secret],
                cwd=folder,
                env={"PATH": "/usr/bin:/bin", "HOME": folder, "TMPDIR": folder, "PYTHONHASHSEED": "0"},
                start_new_session=True,
            )
            with process:
                try:
                    yield process
                finally:
                    with suppress(ProcessLookupError):  # the whole group is gone already
                        os.killpg(process.pid, signal.SIGKILL)
