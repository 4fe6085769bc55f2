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
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, Protocol

_PR_SET_PDEATHSIG = 1
_GRACE_S = 3.0  # between SIGTERM and SIGKILL


_TOLD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Command(Protocol):
    """What ``stop`` needs of a ``subprocess.Popen``."""

    @property
    def pid(self) -> int: ...
    @property
    def stdin(self) -> IO[bytes] | None: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...


def start(argv: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """``subprocess.Popen(argv, **options)`` in a group of its own that ends with this process. What it
    returns is the guard's; it ends as the command ends. Call ``stop`` in any case."""
    script = [sys.executable, "-I", "-S", __file__, *argv]
    return subprocess.Popen(script, stdin=subprocess.PIPE, start_new_session=True, **options)


def stop(process: Command) -> None:
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
    _hear_nothing()
    ends_with_me = _ends_with(os.getpid())
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, close_fds=False, preexec_fn=ends_with_me
        )
    except OSError as err:
        print(f"{argv[0]}: cannot be run ({err.strerror})", file=sys.stderr)
        return 127
    return _attend(process.wait)


def fork(work: Callable[[], int]) -> int:
    """Make this process, the leader of its group with the pipe as its standard input, the guard of a
    fork of it, which does ``work``. Returns in the fork, with what ``work`` returns; the guard ends as
    the fork does."""
    _ends_with(os.getppid())()
    _hear_nothing()
    ends_with_me = _ends_with(os.getpid())
    pid = os.fork()
    if pid == 0:
        ends_with_me()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        return work()
    os._exit(_attend(lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))


def _hear_nothing() -> None:
    for number in _TOLD:
        signal.signal(number, lambda *_: None)  # it ends when the command does, which gets them, too


def _ends_with(parent: int) -> Callable[[], None]:
    """For a child to call: the kernel then kills it when ``parent``, its parent, ends."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def call() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

    return call


def _attend(wait: Callable[[], int]) -> int:
    """Wait for the command while the pipe is open; its exit code, or its end by a signal."""
    threading.Thread(target=_end_with_the_pipe, daemon=True).start()
    code = wait()
    if code < 0:  # whoever waits for this process is to see the same
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def _end_with_the_pipe() -> None:
    while os.read(0, 4096):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
