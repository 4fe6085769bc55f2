"""A program's own time: wall time less the time in which it was ready to run and waited for a core.

The kernel counts that wait for every thread, and adds it when the thread gets a core
(``/proc/PID/task/TID/schedstat``: CPU time, wait and number of slices, in ns; Linux,
Documentation/scheduler/sched-stats.rst). What a thread has counted goes with it, so the clock looks
again and again while a program runs, and adds what is new. Where the kernel does not count, wall time
counts.

Three more waits are no time of the program's own, and the kernel counts none of them: for the disk or
for a lock inside the kernel (state D), as while many lanes start and every page of the interpreter is
read for the first time; for the zygote, which forks the program and ends it; and for a look that comes
late, since nobody has seen what there was to wait for.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
SHORT_S = 0.1  # most programs are done before anything has to be read
LOOK_S = 0.25  # from one look to the next, at the most
SOON_S = 0.01  # and at the least
CREDIT_S = 5.0  # in all, for what may have been waited between two looks and is counted nowhere
PATIENCE = 1000  # however loaded the machine: so many times its limit, and a minute, is enough
CHUNK = 1 << 16
BLOCKED = b"D"
BUSY = {b"R", BLOCKED}


class Usage(NamedTuple):
    """Of a thread: seconds of CPU, and seconds for which it waited for a core."""

    cpu: float = 0.0
    waited: float = 0.0


class Clock:
    """Times one program after the other in the lane whose first process is ``pid``, idle by now."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._lane = (pid, *descendants(pid))
        self._zygote = self._lane[-1]
        # Else no program is seen either (/proc mounted with hidepid, for one): wall time counts.
        self._sees = len(self._lane) > 1 and all(map(usage, self._lane))
        self._begun = self._due = 0.0
        self._restart()

    def start(self) -> None:
        """Before the program is sent: what its lane waits for a core from now on, it waits for it."""
        self._begun = time.monotonic()
        self._restart()

    def left(self, limit: float) -> float:
        """Seconds after which to ask again; 0 or less: the program's own time has reached the limit."""
        wall = time.monotonic() - self._begun
        if wall < (short := min(SHORT_S, limit / 4)):
            return short - wall
        if wall > PATIENCE * limit + 60:
            return 0.0
        self._due = self._due or self._begun + short
        left = self._left(limit)
        again = max(min(left, LOOK_S, limit / 4), SOON_S)
        self._due = time.monotonic() + again
        return again if left > 0 else left

    def kill_program(self) -> None:
        """Kill the program's process, but nothing of the lane."""
        for pid in self._programs():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _restart(self) -> None:
        self._started = time.monotonic()
        self._known = dict(pair for pid in self._lane for pair in usage(pid).items())  # by thread
        self._cpu = self._waited = 0.0  # of all so far
        self._looked, self._threads, self._credit = self._started, set[int](), CREDIT_S
        self._due = 0.0  # the next look; 0: the first
        self._there = self._seen = False  # its process, now; ever
        self._busy = False  # somebody runs, or would if there were a core, a page or a lock

    def _left(self, limit: float) -> float:
        wall = time.monotonic() - self._started  # before the look: a wait that is over is then counted
        self._look()
        if self._sees and (self._busy or not self._there):
            # A wait that is not over is counted afterwards only; or it has ended, and what it had
            # waited since the last look went with it: the answer is on its way.
            return limit - self._cpu
        # One of two that hand over to each other is ready, and waits, while the other still computes: a
        # wait that is no loss. However much is waited, so much CPU time is enough.
        return limit - max(wall - self._waited, self._cpu)

    def _look(self) -> None:
        """Add what is new since the last look. Threads beside each other take no more time than one,
        and a crowd of them is not to get the sum of their waits: the most of any thread counts."""
        now_s, programs = time.monotonic(), self._programs()
        self._there, self._busy, blocked = not self._sees, False, False
        waited_before, threads = self._waited, set()
        for pid in (*self._lane, *programs):
            doing = states(pid)  # before its usage: what has waited and sleeps by now is counted there
            self._busy, blocked = self._busy or bool(doing & BUSY), blocked or BLOCKED in doing
            cpu = waited = 0.0
            for thread, now in usage(pid).items():
                before = self._known.get(thread, Usage())
                if now.cpu < before.cpu:  # another thread has its number
                    before = Usage()
                cpu, waited = max(cpu, now.cpu - before.cpu), max(waited, now.waited - before.waited)
                self._known[thread] = now
                if pid in programs:
                    self._there = True
                    threads.add(thread)
            if pid == self._zygote:  # nothing that it does is the program's
                cpu, waited = 0.0, waited + cpu
            self._cpu, self._waited = self._cpu + cpu, self._waited + waited
        lost = max(now_s - self._looked - (self._waited - waited_before), 0.0)
        late = min(max(now_s - self._due, 0.0), lost)
        self._waited += late
        ended = self._there and not self._threads <= threads
        if blocked or ended:  # what was waited is counted nowhere
            lost = min(lost - late, self._credit)
            self._waited, self._credit = self._waited + lost, self._credit - lost
        self._looked, self._threads = now_s, threads
        self._seen = self._seen or self._there
        if not self._seen:  # the lane still cleans up after another one: this one's time has not begun
            self._restart()

    def _programs(self) -> set[int]:
        return set(descendants(self._pid)) - set(self._lane)


def usage(pid: int) -> dict[int, Usage]:
    """Of every thread of a process, as far as the kernel counts it; empty when the process is gone."""
    found = {}
    for thread in _threads(pid):
        with suppress(OSError, IndexError, ValueError):  # it has ended; no such file here
            cpu, waited = _read(f"{PROC}/{pid}/task/{thread}/schedstat").split()[:2]
            found[thread] = Usage(int(cpu) / 1e9, int(waited) / 1e9)
    return found


def states(pid: int) -> set[bytes]:
    """Of the threads of a process: ``R`` runs, or would if it had a core; ``D`` waits for a disk or for
    a lock of the kernel; ``S`` sleeps (proc_pid_stat(5))."""
    found = set()
    for thread in _threads(pid):
        with suppress(OSError, IndexError):
            stat = _read(f"{PROC}/{pid}/task/{thread}/stat")
            found.add(stat.rpartition(b")")[2].split()[0])
    return found


def descendants(pid: int) -> list[int]:
    """Children, their children, ... of a process, as far as this user can see them."""
    found: list[int] = []
    queue = [pid]
    while queue:
        try:
            new = list(_children(queue.pop()))
        except FileNotFoundError:  # a kernel without these lists
            return _descendants_of_all(pid)
        found += new
        queue += new
    return found


def _children(pid: int) -> Iterator[int]:
    """Raises FileNotFoundError where the kernel keeps no lists of children."""
    for thread in _threads(pid):
        try:
            yield from map(int, _read(f"{PROC}/{pid}/task/{thread}/children").split())
        except OSError:
            if (PROC / f"{pid}/task/{thread}/stat").exists():
                raise FileNotFoundError from None


def _descendants_of_all(pid: int) -> list[int]:
    """The same, from the parents of all processes."""
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


def _threads(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"{PROC}/{pid}/task")]  # noqa: PTH208 - many a second
    except OSError:  # it has ended
        return []


def _read(path: str) -> bytes:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(handle, CHUNK)
    finally:
        os.close(handle)
