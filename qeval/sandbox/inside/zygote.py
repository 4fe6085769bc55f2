"""The zygote: forks a process for each program, ends it, and leaves nothing of it behind.

It is process 1 of the lane's pid namespace, and never reads a program or its tests. The judge sends
``run SECONDS`` with a socket, ``end`` when the process must go, ``wait`` when it has closed its socket
and ends by itself (or the host ends it, when its time is over); the answer is ``CODE CPU``: exit code
or minus the signal, its CPU seconds. When the judge has gone, the zygote ends, and everything with it.
"""

from __future__ import annotations

import _socket
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from typing import NoReturn

from . import program
from .confine import Files, ProgramFilter, landlock, landlock_rules, limit_cpu
from .namespaces import renew_scratch
from .syscalls import capabilities, make
from .wire import frame, send

CHANNEL = 3  # the program's end of its socket
FD_SIZE = 4
UNBROKEN = frame({"broken": ""})


class Walls:
    """The walls around every program of this lane; made before the fork as far as possible."""

    def __init__(
        self,
        limits: Mapping[str, int],
        files: Files,
        *,
        use_landlock: bool,
        use_seccomp: bool,
        scratch: str | None,
    ) -> None:
        """``scratch``: the mount options of /tmp, in a pid namespace whose first process this is; None:
        it is a plain folder, and there is no such namespace."""
        self.limits, self.files, self.scratch = limits, files, scratch
        self.use_landlock, self.use_seccomp = use_landlock, use_seccomp
        self._rules = -1
        self._filter = ProgramFilter() if use_seccomp else None
        self._no_capabilities = capabilities(0)
        self._renew_rules()
        self._clean = os.stat(files.own).st_ctime_ns

    def put_up(self, channel: int, cpu_s: int) -> None:
        """Confine this process, for good, and leave it one descriptor: CHANNEL."""
        if self.use_landlock:
            make(self.landlock)
        make(self._no_capabilities)
        limit_cpu(cpu_s)
        os.dup2(channel, CHANNEL)
        os.closerange(CHANNEL + 1, 1 << 20)
        if self._filter is not None:
            self._filter.install()

    def clean(self) -> None:
        """Empty the scratch folder, if anything was done in it or to it."""
        if os.stat(self.files.own).st_ctime_ns == self._clean:
            return
        if self.scratch is None:
            os.chmod(self.files.own, 0o700)
            empty(self.files.own)
        else:
            renew_scratch(self.scratch)
        self._clean = os.stat(self.files.own).st_ctime_ns
        if self.scratch is not None:  # one rule was for a folder that is gone
            self._renew_rules()

    def _renew_rules(self) -> None:
        if self.use_landlock:
            if self._rules >= 0:
                os.close(self._rules)
            self._rules = landlock_rules(self.files)
            self.landlock = landlock(self._rules)


def serve(control: _socket.socket, walls: Walls) -> NoReturn:
    """Do what the judge asks for, until it has gone."""
    child = 0
    while True:
        data, ancillary, _, _ = control.recvmsg(64, _socket.CMSG_SPACE(FD_SIZE))
        if not data:
            os._exit(0)
        word, _, value = data.partition(b" ")
        if word == b"run":
            channel = int.from_bytes(ancillary[0][2][:FD_SIZE], "little")
            child = os.fork()
            if child == 0:
                _become_program(channel, walls, int(value))
            os.close(channel)
        else:
            if word == b"wait":
                os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
            control.send(_end(child, walls.scratch is not None))
            walls.clean()


def _become_program(channel: int, walls: Walls, cpu_s: int) -> NoReturn:
    try:
        try:
            walls.put_up(channel, cpu_s)
        except BaseException as err:
            send(channel, {"broken": f"{type(err).__name__}: {err}"})
        else:
            os.write(CHANNEL, UNBROKEN)
            program.serve(CHANNEL)
    finally:
        os._exit(0)


def _end(child: int, own_pids: bool) -> bytes:
    """End the program and everything it may have started."""
    status, cpu = 0, 0.0
    with suppress(ProcessLookupError):  # there is none left
        os.kill(-1 if own_pids else child, signal.SIGKILL)
    with suppress(ChildProcessError):
        while True:
            pid, found, usage = os.wait4(-1, 0)
            if pid == child:
                status, cpu = found, usage.ru_utime + usage.ru_stime
    return b"%d %f" % (os.waitstatus_to_exitcode(status), cpu)


def empty(folder: str) -> None:
    """Remove everything in a folder, however deep: whatever a folder holds is first moved up, so that
    no path ever gets long."""
    moved = 0
    while entries := list(os.scandir(folder)):
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            os.chmod(entry.path, 0o700)
            for inner in os.listdir(entry.path):
                os.rename(f"{entry.path}/{inner}", f"{folder}/.moved-{moved}")
                moved += 1
            os.rmdir(entry.path)
