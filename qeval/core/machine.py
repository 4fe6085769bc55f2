"""The machine: its name, and how much other programs take of it while something is timed."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from qeval.core.cores import limits

HOST_VARIABLE = "QEVAL_HOST"
STAT = Path("/proc/stat")
MEMINFO = Path("/proc/meminfo")


def host() -> str:
    """A stable name for this machine: QEVAL_HOST where it is set (containers and CI runners have
    another host name every time), else the host name without its domain, which changes with the
    network."""
    return os.environ.get(HOST_VARIABLE, "").strip() or socket.gethostname().partition(".")[0] or "?"


def available_memory() -> int:
    """Bytes that a program can still take without swapping, no more than its containers' limits leave.
    proc_meminfo(5), cgroups(7)."""
    try:
        lines = MEMINFO.read_text(encoding="utf-8").splitlines()
        free = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux: all there is
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(max(0, min([free, *limits("memory", _left_v1, _left_v2)])))


def _left_v1(group: Path) -> float | None:
    return _left(group, "memory.limit_in_bytes", "memory.usage_in_bytes")


def _left_v2(group: Path) -> float | None:
    return _left(group, "memory.max", "memory.current")


def _left(group: Path, limit: str, usage: str) -> float | None:
    """Bytes under a group's limit, with those of files in memory, which can go."""
    most = (group / limit).read_text().strip()
    if most == "max":
        return None
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    files = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))  # v1 has both
    return int(most) - int((group / usage).read_text()) + files


class Load:
    """How busy the machine was from ``Load()`` to ``stop()``, this process left out."""

    def __init__(self) -> None:
        self.before = _load_average()
        self._start = self._now()

    def stop(self) -> dict[str, float | None]:
        """``load_before`` and ``load_after`` (the system's averages over a minute, this process's own
        work included) and ``others``: cores that other processes kept busy in the meantime, the time
        that a hypervisor took included; None where the system does not say."""
        return {
            "load_before": self.before,
            "load_after": _load_average(),
            "others": _others(self._start, self._now()),
        }

    def _now(self) -> tuple[float, float | None]:
        """Seconds: wall time, and CPU time of all other processes."""
        busy, own = _busy(), os.times()
        mine = own.user + own.system + own.children_user + own.children_system
        return time.monotonic(), None if busy is None else busy - mine


def _others(start: tuple[float, float | None], end: tuple[float, float | None]) -> float | None:
    wall = end[0] - start[0]
    if start[1] is None or end[1] is None or wall < 0.5:  # the clock ticks in hundredths of a second
        return None
    return round(max(0.0, end[1] - start[1]) / wall, 2)


def _busy() -> float | None:
    """CPU seconds that all cores together were busy since the system started. proc_stat(5)."""
    try:
        fields = STAT.read_text(encoding="utf-8").split("\n", 1)[0].split()
        user, nice, system, _, _, irq, softirq, steal = map(int, fields[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _load_average() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None
