"""Where a number was measured: host, device, threads. Speed, time and peak memory depend on it, so two
places never share a column of them; perplexity and pass@k do not, and share one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qeval.core.record import Record

UNKNOWN_TEXT = "conditions unknown"


@dataclass(frozen=True)
class Place:
    """None: unknown, or without influence (the threads of a CPU beside a GPU)."""

    host: str | None = None
    device: str | None = None  # "cpu" or "cuda": which of equal GPUs it was does not matter
    device_name: str | None = None  # "2 x NVIDIA H200" where the layers are spread
    n_threads: int | None = None

    def words(self) -> str:
        """``laptop, 4 threads of an Intel(R) Core(TM) i7``; ``box, NVIDIA H200``."""
        if self == UNKNOWN:
            return UNKNOWN_TEXT
        if self == Place(self.host):  # of times, whatever the device
            return str(self.host)
        name = self.device_name or self.device or "device unknown"
        of_cpu = f"{_threads(self.n_threads)} of {name}" if self.n_threads else name
        return ", ".join(part for part in (self.host, of_cpu) if part)


UNKNOWN = Place()


def place_of(record: Record) -> Place:
    """From what the worker found; of a record without a number, what its cell was to run on."""
    asked, found = record.cell.get("conditions"), record.conditions
    if asked and (found is None or record.status != "ok"):
        return place_asked(asked)
    if found is None:
        return UNKNOWN
    return _place(found.host, found.device, found.device_name, found.n_threads)


def place_asked(conditions: Mapping[str, Any]) -> Place:
    """From what a cell is to run on (plan/cells.py)."""
    return _place(*(conditions[name] for name in ("host", "device", "device_name", "n_threads")))


def host_of(record: Record) -> Place:
    """The host alone, for times that several devices of it had their share in."""
    found = record.conditions
    return Place(host=found.host if found else record.provenance.get("host"))


def in_order(places: Iterable[Place]) -> list[Place]:
    """The same whatever order the records came in."""
    return sorted(
        set(places),
        key=lambda p: (p.host or "~", p.device or "", p.device_name or "", p.n_threads or 0),
    )


def labels(places: Iterable[Place]) -> dict[Place, str]:
    """What tells each place from the others, in few words: ``2 threads``, ``laptop``, ``box, cpu``;
    nothing where there is one only."""
    every = in_order(places)
    known = [p for p in every if p != UNKNOWN]
    if len(every) < 2:
        return dict.fromkeys(every, "")
    found = dict(zip(known, _distinct(known), strict=True))
    return {place: found.get(place, UNKNOWN_TEXT) for place in every}


def _place(host: str | None, device: str | None, name: str | None, n_threads: int | None) -> Place:
    kind, _, numbers = (device or "").partition(":")
    several = numbers.count(",") + 1
    return Place(
        host=host,
        device=kind or None,
        device_name=f"{several} x {name}" if name and several > 1 else name,
        n_threads=None if kind == "cuda" else n_threads,
    )


def _distinct(known: list[Place]) -> list[str]:
    """Hosts where they differ, devices where these do, threads where only these tell."""
    hosts, kinds, names = (
        {getattr(p, field) for p in known} for field in ("host", "device", "device_name")
    )
    by_host, by_kind = len(hosts) > 1, len(kinds) > 1
    by_device = by_kind or (len(names) > 1 and not by_host)

    def short(place: Place, with_threads: bool) -> str:
        host = place.host or "host unknown"
        device = "cpu" if place.device == "cpu" and by_kind else place.device_name or "device unknown"
        parts = [host] if by_host else []
        parts += [device] if by_device else []
        parts += [_threads(place.n_threads)] if with_threads and place.n_threads else []
        return ", ".join(parts)

    if len(known) == 1:  # beside unknown ones
        (place,) = known
        told = place.device_name if place.device == "cuda" else _threads(place.n_threads)
        return [", ".join(part for part in (place.host, told) if part)]
    for with_threads in (not (by_host or by_device), True):
        texts = [short(p, with_threads) for p in known]
        if len(set(texts)) == len(known) and all(texts):
            return texts
    return [p.words() for p in known]


def _threads(n: int | None) -> str:
    if n is None:
        return ""
    return "1 thread" if n == 1 else f"{n} threads"
