"""A process that has imported what the workers of an engine import, and forks one for each job.

Most of a small cell is imports: 5 s of CPU for torch and transformers, before 1 s of work. The zygote
does nothing but import. Each job still has a process of its own, with a memory of its own: a fork of
one that never held a model, so that no job sees what another left. The peak of its memory (VmHWM)
starts at the fork with what the imports take.

Only what can be forked is: ``_can_fork`` refuses where an import started threads or opened a GPU, and
jobs then get a fresh interpreter, as on systems other than Linux.

A job's fork stands under a guard (core/guard.py), as a worker that is started does: the guard, forked
first, leads the group, and ends it when the program's end of a pipe is closed.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from io import FileIO
from pathlib import Path

from qeval.core import guard
from qeval.core.cores import threads

FLAG = "--zygote"
_MESSAGE = 65536  # bytes; no message is longer


class Forked:
    """A job's process, like a ``subprocess.Popen``: ``pid`` is its guard's, which leads the group."""

    def __init__(self, pid: int, stdin: FileIO, end: Callable[[float | None], int | None]) -> None:
        self.pid = pid
        self.stdin = stdin
        self.returncode: int | None = None
        self._end = end

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._end(0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self.returncode = self._end(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a forked worker", timeout or 0.0)
        return self.returncode


class Zygote:
    """The program's side. Close it when no more jobs come."""

    def __init__(self, modules: str, n_threads: int | None, env: dict[str, str], log: Path) -> None:
        """Start it; it imports ``modules``. What that prints goes to ``log``."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, log.open("wb") as file:
            fd = theirs.fileno()
            argv = ["-m", "qeval.worker", FLAG, modules, str(n_threads or 0), str(fd)]
            self._process = guard.start(
                [sys.executable, *argv], stdout=file, stderr=file, pass_fds=(fd,), env=env
            )
        self._ready: bool | None = None

    def ready(self, timeout: float | None) -> bool:
        """Wait for the imports; False where it cannot fork, has ended, or is not ready yet."""
        if self._ready is None:
            if not self._hears(timeout):
                return False
            self._ready = self._receive() == {"can_fork": True}
        return self._ready

    def fork(self, argv: Sequence[str], log: int, progress: int) -> Forked | None:
        """A worker with ``argv``, of which the last, the descriptor of its progress, is left out. None
        where the zygote has ended."""
        read_end, write_end = os.pipe()
        try:
            request = json.dumps(list(argv)).encode()
            socket.send_fds(self._socket, [request], [read_end, log, progress])
            answer = self._receive()
        except OSError:
            answer = None
        finally:
            os.close(read_end)
        stdin = os.fdopen(write_end, "wb", buffering=0)
        if answer is None:
            stdin.close()
            self._ready = False
            return None
        return Forked(answer["pid"], stdin, self._end)

    def close(self) -> None:
        guard.stop(self._process)
        self._socket.close()

    def _end(self, timeout: float | None) -> int | None:
        """The exit code of the job; None where the time is over first. The kernel kills a job with its
        zygote."""
        if not self._hears(timeout):
            return None
        answer = self._receive()
        if answer is None:
            self._ready = False
            return -signal.SIGKILL
        return answer["code"]

    def _hears(self, timeout: float | None) -> bool:
        wait = None if timeout is None else max(0.0, timeout)
        return bool(select.select([self._socket], [], [], wait)[0])

    def _receive(self) -> dict[str, int] | None:
        """What it says next; None where it has ended."""
        try:
            data = self._socket.recv(_MESSAGE)
        except OSError:
            return None
        return json.loads(data) if data else None


def serve(argv: Sequence[str], work: Callable[[Sequence[str]], int]) -> int:
    """The zygote's side: import, then fork for each job that is asked. Returns the exit code of
    ``work`` in a fork, and 0 in the zygote when the program has closed its end."""
    modules, n_threads, fd = argv
    os.environ["OMP_NUM_THREADS"] = str(threads(int(n_threads) or None))  # before libgomp reads it
    asked = socket.socket(fileno=int(fd))
    before = _numpys_threads()
    try:
        import_module(modules)
    except Exception as err:  # the job imports it again, and says so in its own result
        print(f"{modules}: {err}", file=sys.stderr)
    gc.collect()
    gc.freeze()  # a fork then writes to fewer of the pages that it shares
    try:
        asked.send(json.dumps({"can_fork": _can_fork(before)}).encode())
        while True:
            data, fds, _, _ = socket.recv_fds(asked, _MESSAGE, 3)
            if not data:
                return 0
            pid = os.fork()
            if pid == 0:
                asked.close()
                return _begin(json.loads(data), fds, work)
            for one in fds:
                os.close(one)
            asked.send(json.dumps({"pid": pid}).encode())
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            asked.send(json.dumps({"code": code}).encode())
    except BrokenPipeError:  # the program has ended, and the job with it
        return 0


def _begin(argv: list[str], fds: Sequence[int], work: Callable[[Sequence[str]], int]) -> int:
    """In a fork: the guard of a job, and in a fork of that the job, with its own log and progress."""
    stdin, log, progress = fds
    for source, target in ((stdin, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(stdin)
    os.close(log)
    os.setsid()
    return guard.fork(lambda: _work([*argv, str(progress)], work))


def _work(argv: list[str], work: Callable[[Sequence[str]], int]) -> int:
    sys.argv[1:] = argv
    return work(argv)


def _numpys_threads() -> int:
    """How many threads numpy's import leaves: its OpenBLAS ends its own at a fork, and starts them
    again."""
    import numpy  # noqa: F401

    return _n_threads()


def _n_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def _can_fork(n_threads: int) -> bool:
    """Whether a fork is whole: no import has started a thread, whose locks would stay locked, or spoken
    to a GPU's driver, which knows no forks."""
    opened = (file for file in Path("/proc/self/fd").iterdir() if file.is_symlink())
    gpus = any(str(file.readlink()).startswith("/dev/nvidia") for file in opened)
    return _n_threads() <= n_threads and not gpus
