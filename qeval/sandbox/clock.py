"""A program's own time: wall time less the time in which it was ready to run and waited for a core.

The kernel counts that wait for every thread (``/proc/PID/task/TID/schedstat``: CPU time, wait and
number of slices, in ns; Linux, Documentation/scheduler/sched-stats.rst). Where it does not, wall time
counts.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
SHORT_S = 0.1  # most programs are done before anything has to be read
PATIENCE = 20  # however loaded the machine: so many times its limit, and a minute, is enough


class Clock:
    """Times one program after the other in the lane whose first process is ``pid``, idle by now."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._lane = [pid, *descendants(pid)]
        self._started = 0.0
        self._before: Usage | None = None

    def start(self) -> None:
        self._started = time.monotonic()
        self._before = None

    def left(self, limit: float) -> float:
        """Seconds that have to pass before the limit can be reached; 0 or less: it is."""
        wall = time.monotonic() - self._started
        if self._before is None and wall < SHORT_S:
            return min(SHORT_S, limit) - wall
        if self._before is None:
            self._before = sum(map(usage, self._lane), Usage())
            return limit - wall
        if wall < limit or wall > PATIENCE * limit + 60:
            return limit - wall
        used = self._used(self._before)
        # One of two that hand over to each other is ready, and waits, while the other still computes: a
        # wait that is no loss. However much is waited, so much CPU time is enough.
        left = limit - max(wall - used.waited, used.cpu)
        if left <= 0 and used.runnable and used.cpu < limit:
            left = limit - used.cpu  # it waits right now, which the kernel counts only afterwards
        return max(left, 0.01) if left > 0 else left

    def kill_program(self) -> None:
        """Kill the program's process, but nothing of the lane."""
        for pid in self._programs():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _programs(self) -> set[int]:
        return set(descendants(self._pid)) - set(self._lane)

    def _used(self, before: Usage) -> Usage:
        """Since the start (in the lane's own processes, since shortly after it)."""
        own = sum(map(usage, self._lane), Usage())
        own = Usage(own.cpu - before.cpu, own.waited - before.waited, own.runnable)
        return sum(map(usage, self._programs()), own)


@dataclass(frozen=True)
class Usage:
    """Of a process: CPU seconds of the thread that ran longest (threads beside each other are no more
    time than one); seconds for which that thread waited for a core that waited longest (a crowd of
    threads is not to get the sum of their waits); whether its first thread runs or could run now."""

    cpu: float = 0.0
    waited: float = 0.0
    runnable: bool = False

    def __add__(self, other: Usage) -> Usage:
        runnable = self.runnable or other.runnable
        return Usage(self.cpu + other.cpu, self.waited + other.waited, runnable)


def usage(pid: int) -> Usage:
    cpu = waited = 0
    runnable = False
    with suppress(OSError):
        runnable = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "R"
        for thread in (PROC / str(pid) / "task").iterdir():
            with suppress(OSError, IndexError, ValueError):  # it has ended; no such file here
                fields = (thread / "schedstat").read_text().split()
                cpu = max(cpu, int(fields[0]))
                waited = max(waited, int(fields[1]))
    return Usage(cpu / 1e9, waited / 1e9, runnable)


def descendants(pid: int) -> list[int]:
    """Children, their children, ... of a process, as far as this user can see them."""
    children: dict[int, list[int]] = {}
    for folder in PROC.glob("[0-9]*"):
        with suppress(OSError, IndexError, ValueError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found: list[int] = []
    queue = [pid]
    while queue:
        new = children.get(queue.pop(), [])
        found += new
        queue += new
    return found
