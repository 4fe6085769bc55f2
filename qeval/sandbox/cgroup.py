"""A control group per lane, where this user may make one: memory and processes of all that is in it.

Version 1 (a hierarchy for each controller) and 2 (one for all), below or beside the group of this
process. Without them the limits of each process remain (inside/confine.py). cgroups(7).
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from qeval.sandbox.base import MIB, Limits

ROOT = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
PREFIX = "qeval-"
OVERHEAD_BYTES = 512 * MIB  # the lane's own processes
OVERHEAD_PROCESSES = 16
PATIENCE_S = 5.0
_numbers = itertools.count()


@dataclass(frozen=True)
class Part:
    """A folder of the lane's own in one hierarchy, and its files: name -> value."""

    controller: str  # "memory" | "pids"
    folder: Path
    limits: dict[str, str]


class Group:
    """The lane's folders, one per controller (version 1) or the same for both."""

    def __init__(self, parts: list[Part]) -> None:
        self._parts = parts

    @classmethod
    @contextmanager
    def create(cls, limits: Limits) -> Iterator[Group]:
        """A new group, empty where none can be made; removed in the end."""
        name = f"{PREFIX}{os.getpid()}-{next(_numbers)}"
        parts = []
        for part in _wanted(limits, name):
            with suppress(OSError):
                _remove_stale(part.folder.parent)
                part.folder.mkdir(exist_ok=True)
                parts.append(part)
                for file, value in part.limits.items():
                    (part.folder / file).write_text(value)
        try:
            yield cls(parts)
        finally:
            for part in parts:
                _remove(part.folder)

    def add(self, pid: int) -> None:
        for part in self._parts:
            with suppress(OSError):
                (part.folder / "cgroup.procs").write_text(str(pid))

    def layers(self, pid: int) -> dict[str, str]:
        """The groups that hold the process and their limits, as the kernel says."""
        return {f"cgroup {part.controller}": "" for part in self._parts if _holds(part, pid)}

    def out_of_memory(self) -> int:
        """How many processes the kernel has killed in here for lack of memory."""
        for part in self._parts:
            if part.controller != "memory":
                continue
            for file in ("memory.events", "memory.oom_control"):
                with suppress(OSError):
                    for line in (part.folder / file).read_text().splitlines():
                        key, _, value = line.partition(" ")
                        if key == "oom_kill":
                            return int(value)
        return 0


def _wanted(limits: Limits, name: str) -> Iterator[Part]:
    memory = str(limits.memory_bytes + limits.scratch_bytes + OVERHEAD_BYTES)
    pids = {"pids.max": str(limits.threads + OVERHEAD_PROCESSES)}
    with suppress(OSError, ValueError):
        for line in OWN_GROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            below = path.lstrip("/")
            if controllers == "memory":
                limit = {"memory.limit_in_bytes": memory}
                yield Part("memory", ROOT / "memory" / below / name, limit)
            elif controllers == "pids":
                yield Part("pids", ROOT / "pids" / below / name, pids)
            elif controllers == "" and (ROOT / "cgroup.controllers").exists():
                # A group with processes cannot give controllers to groups below it: go beside it.
                parent = (ROOT / below).parent if below else ROOT
                given = (parent / "cgroup.subtree_control").read_text().split()
                if "memory" in given:
                    yield Part("memory", parent / name, {"memory.max": memory, "memory.swap.max": "0"})
                if "pids" in given:
                    yield Part("pids", parent / name, pids)


def _holds(part: Part, pid: int) -> bool:
    try:
        members = (part.folder / "cgroup.procs").read_text().split()
        first, value = next(iter(part.limits.items()))
        return str(pid) in members and (part.folder / first).read_text().strip() == value
    except OSError:
        return False


def _remove(folder: Path) -> None:
    """Once the last of its processes, killed before, has really gone."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.01)


def _remove_stale(folder: Path) -> None:
    """Groups that a killed qeval has left."""
    for group in folder.glob(f"{PREFIX}*"):
        owner = group.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            with suppress(OSError):
                group.rmdir()
