"""Commands that end, with all that they started, when the process that wanted them ends:
``python guard.py COMMAND...`` in a process group of its own, standard input a pipe of that process.

A worker's children (llama.cpp's converter, pip, a compiler) know nothing of who they work for: after
kill -9 of the worker or of `qeval run` they would go on, write into the cache and hold its locks. The
kernel tells only a direct child of a parent's end (PR_SET_PDEATHSIG), so that something must stay
behind to end the group. That is this process. It reads the pipe; its end means that the other side is
gone.

It runs as a script, without the package and its imports: it stays for the whole job, and should cost
only a few milliseconds and megabytes. ``start`` and ``stop`` are for the process that wants the
command.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Any

_PR_SET_PDEATHSIG = 1
_GRACE_S = 3.0  # between SIGTERM and SIGKILL


def start(argv: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """``subprocess.Popen(argv, **options)`` in a group of its own that ends with this process. What it
    returns is the guard's; it ends as the command ends. Call ``stop`` in any case."""
    script = [sys.executable, "-I", "-S", __file__, *argv]
    return subprocess.Popen(script, stdin=subprocess.PIPE, start_new_session=True, **options)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End every process of the group, first gently; the command has ended, and is reaped, on return."""
    if process.poll() is None:
        _signal_group(process.pid, signal.SIGTERM)
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            pass  # SIGKILL below
        except KeyboardInterrupt:  # a second Ctrl-C: no more patience
            _signal_group(process.pid, signal.SIGKILL)
            process.wait()
            raise
    _signal_group(process.pid, signal.SIGKILL)  # whatever the worker left behind in its group
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return


def main(argv: list[str]) -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # it ends when the command does, which gets them, too
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    own = os.getpid()

    def with_me() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != own:
                os._exit(1)

    try:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, close_fds=False, preexec_fn=with_me)
    except OSError as err:
        print(f"{argv[0]}: cannot be run ({err.strerror})", file=sys.stderr)
        return 127
    threading.Thread(target=_end_with_the_pipe, daemon=True).start()
    code = process.wait()
    if code < 0:  # whoever waits for this process is to see the same
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(own, -code)
    return code


def _end_with_the_pipe() -> None:
    while os.read(0, 4096):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
