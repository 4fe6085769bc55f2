"""Which problems one row solves and the other does not, with what both wrote.

Completions and verdicts are read from the files beside the records (``samples.jsonl``); where these are
not there (a folder of which only records.jsonl was copied) the problems are still named.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qeval.core.record import SHARE_UNITS, Metric, Record
from qeval.report.compare import mcnemar_p
from qeval.store.samples import Answer, KeptSamples


@dataclass(frozen=True)
class Flip:
    """A unit whose share of passed samples (1 or 0 of one) is not the same. ``a`` and ``b``: a sample
    of each that shows it, where they are kept."""

    unit: str
    share_a: float
    share_b: float
    a: Answer | None = None
    b: Answer | None = None

    @property
    def direction(self) -> Literal["lost", "gained"]:
        return "lost" if self.share_b < self.share_a else "gained"


@dataclass(frozen=True)
class Flips:
    """Of one task. ``p``: McNemar's exact test, where each unit passed or failed; else None."""

    task: str
    n: int
    flips: tuple[Flip, ...]
    p: float | None

    @property
    def lost(self) -> list[Flip]:
        return [flip for flip in self.flips if flip.direction == "lost"]

    @property
    def gained(self) -> list[Flip]:
        return [flip for flip in self.flips if flip.direction == "gained"]


Kept = dict[str, KeptSamples]
"""What was read already, by folder and key."""


def _samples(record: Record, known: Kept) -> KeptSamples:
    return known.setdefault(f"{record.folder} {record.key}", KeptSamples(record))


def flips(
    task: str, a: tuple[Record, Metric], b: tuple[Record, Metric], read: Kept | None = None
) -> Flips | None:
    """The largest changes first, of equal ones in the task's order. None where units do not pair one by
    one, or say nothing of passing."""
    (record_a, metric_a), (record_b, metric_b) = a, b
    if metric_a.pairs not in ("problem", "item") or metric_a.change != "points":
        return None
    if metric_a.units != metric_b.units or len(metric_a.values) != len(metric_b.values):
        return None
    one = SHARE_UNITS.get(metric_a.unit, 1.0)
    units = metric_a.units or tuple(str(i) for i in range(len(metric_a.values)))
    samples_a = KeptSamples(record_a) if read is None else _samples(record_a, read)
    samples_b = KeptSamples(record_b)
    found = []
    pairs = zip(units, metric_a.values, metric_b.values, strict=True)
    known = [(u, x / one, y / one) for u, x, y in pairs if x is not None and y is not None]
    for unit, x, y in known:
        if x != y:
            better, worse = (samples_a, samples_b) if x > y else (samples_b, samples_a)
            shown = (better.one(unit, passed=True), worse.one(unit, passed=False))
            found.append(Flip(unit, x, y, *(shown if x > y else shown[::-1])))
    found.sort(key=lambda flip: -abs(flip.share_b - flip.share_a))
    plain = all(x in (0.0, 1.0) and y in (0.0, 1.0) for _, x, y in known)
    up = sum(flip.direction == "gained" for flip in found)
    return Flips(task, len(known), tuple(found), mcnemar_p(up, len(found) - up) if plain else None)
