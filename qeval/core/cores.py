"""How many CPU cores this process may use, and how many threads a job takes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from math import ceil
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """The cores that the scheduler lets this process run on, no more than its containers' CPU quota
    (``docker run --cpus``), which the affinity mask does not show. cgroups(7)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *map(ceil, _quotas())]))


def threads(asked: int | None) -> int:
    """Threads for a job: as many as asked, else as OMP_NUM_THREADS says, else one a core; never more
    than there are cores to use."""
    cores = usable_cores()
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    usual = int(first) if first.isdecimal() and int(first) > 0 else cores
    return min(asked or usual, cores)


def waiting() -> dict[str, str]:
    """For the environment of a process that computes with threads: how they wait for each other.

    libgomp's threads (torch's and llama.cpp's on Linux) turn in a loop up to 300,000 times before they
    sleep. Where others need the cores, that is most of what they do: at every small layer one waits for
    another that is not running. 1,000 turns are as quick on an idle machine (scripts/bench_waiting.py).
    """
    if "GOMP_SPINCOUNT" in os.environ or "OMP_WAIT_POLICY" in os.environ:
        return {}
    return {"GOMP_SPINCOUNT": "1000"}


def _quotas() -> Iterator[float]:
    """In cores: the quota of every control group that this process is in, where it has one."""
    yield from limits("cpu", _quota_v1, _quota_v2)


def limits(
    controller: str, v1: Callable[[Path], float | None], v2: Callable[[Path], float | None]
) -> Iterator[float]:
    """What ``v1`` or ``v2`` (by the version of cgroups) read in the folder of each control group that
    this process is in, where the group has such a limit."""
    try:
        lines = OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            yield from _each(CGROUPS / controller, path, v1)
        elif controllers == "":
            yield from _each(CGROUPS, path, v2)


def _each(root: Path, path: str, read: Callable[[Path], float | None]) -> Iterator[float]:
    """What is read of a group and of those around it, up to the root that this process sees."""
    group = root / path.lstrip("/")
    while True:
        try:
            found = read(group)
        except (OSError, ValueError):
            found = None  # no such file here: this group has no limit
        if found is not None:
            yield found
        if group == root or root not in group.parents:
            return
        group = group.parent


def _quota_v1(group: Path) -> float | None:
    quota = int((group / "cpu.cfs_quota_us").read_text())
    return quota / int((group / "cpu.cfs_period_us").read_text()) if quota > 0 else None


def _quota_v2(group: Path) -> float | None:
    quota, period = (group / "cpu.max").read_text().split()
    return None if quota == "max" else int(quota) / int(period)
