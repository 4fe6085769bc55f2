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
        self._waited_before: float | None = None

    def start(self) -> None:
        self._started = time.monotonic()
        self._waited_before = None

    def left(self, limit: float) -> float:
        """Seconds that have to pass before the limit can be reached; 0 or less: it is."""
        wall = time.monotonic() - self._started
        if self._waited_before is None and wall < SHORT_S:
            return min(SHORT_S, limit) - wall
        if self._waited_before is None:
            self._waited_before = sum(map(waited_s, self._lane))
            return limit - wall
        left = limit - wall
        if left <= 0 and wall < PATIENCE * limit + 60:
            left += self._waited()
            return max(left, 0.01) if left > 0 else left
        return left

    def kill_program(self) -> None:
        """Kill the program's process, but nothing of the lane."""
        for pid in self._programs():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _programs(self) -> set[int]:
        return set(descendants(self._pid)) - set(self._lane)

    def _waited(self) -> float:
        """Since the start (in the lane's own processes, since shortly after it)."""
        assert self._waited_before is not None
        own = sum(map(waited_s, self._lane)) - self._waited_before
        return own + sum(map(waited_s, self._programs()))


def waited_s(pid: int) -> float:
    """Seconds for which a process has waited for a core: as long as that thread of it which waited
    longest (a crowd of threads is not to get the sum of their waits)."""
    longest = 0
    with suppress(OSError):
        for thread in (PROC / str(pid) / "task").iterdir():
            with suppress(OSError, IndexError, ValueError):  # it has ended; no such file here
                longest = max(longest, int((thread / "schedstat").read_text().split()[1]))
    return longest / 1e9


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
