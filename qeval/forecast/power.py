"""The smallest differences that a planned run would find in each column, and what smaller ones take.

A difference's spread is not known before it is measured: it is that of an earlier run of the same task.
Without one, shares of items that pass or fail are told for an assumption, which is said; of windows
nothing is told.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from qeval.core.errors import UsageError
from qeval.core.record import SHARE_UNITS, Metric
from qeval.forecast.earlier import KIN, Asked, Earlier, Found, nearest
from qeval.plan.spec import TaskEntry
from qeval.report.compare import other_text, paired
from qeval.stats.power import (
    Sides,
    Spread,
    Units,
    spread_in_order,
    spread_of_sides,
    spread_of_strangers,
    units_for,
)
from qeval.tasks.base import Expected

FEWEST = 8  # units of an earlier run, below which its spread says too little
CHANGED = 0.10  # share of items that change sides, where nothing is known
_TESTED = ("relative", "difference", "points")
_MANY = 10**6


@dataclass(frozen=True)
class Wish:
    """A difference that is to be found: ``value`` is a share for ``relative`` and ``points``."""

    text: str
    change: str
    value: float
    unit: str = ""

    def fits(self, metric: Metric) -> bool:
        return metric.change == self.change and (not self.unit or metric.unit == self.unit)


def wish(text: str) -> Wish:
    """``1``: a percentage point of a share; ``0.5%``: of a perplexity; ``0.001nats``: in that unit.

    Raises:
        UsageError: anything else.
    """
    match = re.fullmatch(r"(\d*\.?\d+(?:e-?\d+)?)\s*(%|[a-z]*)", text.strip().lower())
    value = float(match[1]) if match else 0.0
    if not match or not 0 < value < math.inf:
        raise UsageError(
            f"--detect {text}: give a difference over zero: 1 (points of a share), 0.5% (of a "
            "perplexity) or 0.001nats (of a divergence)"
        )
    unit = match[2]
    if unit == "%":
        return Wish(text, "relative", value / 100)
    if unit in ("", "pt", "pts", "points"):
        return Wish(text, "points", value / 100)
    return Wish(text, "difference", value, unit)


@dataclass(frozen=True)
class Source:
    """Whose difference from the baseline; ``row`` is two rows where these are compared."""

    row: str
    spread: Spread
    n: int | None  # units that it was measured with; None: assumed

    def finds(self, metric: Metric, n: int) -> float:
        """In the terms of a table: shares, and for ``relative`` a growth."""
        least = self.spread.finds(n)
        return math.expm1(least) if metric.change == "relative" and least < 700 else least

    def units_for(self, metric: Metric, wished: float) -> int | None:
        if metric.change == "relative":
            wished = math.log1p(wished)
        return units_for(wished, self.spread.finds)


@dataclass(frozen=True)
class Column:
    """One metric of one task of one model. ``n``: units that will be measured, ``whole``: that there
    are; None: not known before. ``said``: where the spread is from, what is assumed, or why there is
    none."""

    model: str
    task: TaskEntry
    metric: Metric
    unit: str
    n: int | None
    whole: int | None
    sources: tuple[Source, ...]
    said: str

    @property
    def title(self) -> str:
        limit, whole = self.task.limit, self.whole
        cut = limit is not None and (whole is None or limit < whole)
        task = self.task.title if cut else self.task.label
        return f"{self.metric.heading or self.metric.name} {task}"

    def finds(self) -> list[tuple[str, float]]:
        """By row, the smallest first; empty where it is not known."""
        n = self.n
        if n is None:
            return []
        found = [(source.row, source.finds(self.metric, n)) for source in self.sources]
        return sorted(found, key=lambda pair: pair[1])

    def needs(self, wished: Wish) -> list[tuple[str, int | None]]:
        """Units by row, the fewest first; None: more than anybody has."""
        if not wished.fits(self.metric):
            return []
        found = [(s.row, s.units_for(self.metric, wished.value)) for s in self.sources]
        return sorted(found, key=lambda pair: math.inf if pair[1] is None else pair[1])


def columns(
    task: TaskEntry,
    model: Asked,
    expected: tuple[Expected, Expected],
    earlier: Earlier,
    rows: frozenset[str],
) -> Iterator[Column]:
    """Those of a task that are tested against the baseline.

    Args:
        expected: with the task's limit, and without one.
        rows: keys of the quantizations that are planned.
    """
    kin, found = nearest(earlier.of(task), model)
    metrics = {m.name: m for one in found for m in one.record.metrics if m.shown}
    metrics = {m.name: m for m in expected[0].metrics} | metrics
    n, whole = (one.n for one in expected)
    if n is None:
        n = _measured(found if kin == KIN[0] else [], task)
    for metric in metrics.values():
        if metric.change not in _TESTED or metric.pairs in (None, "none"):
            continue
        sources = list(_sources(metric, found, rows))
        told = [s for s in sources if s.n is not None and s.n >= FEWEST]
        said = _from(told, kin, found)
        if not told:
            told, said = _without(metric, expected[0], sources)
        unit = expected[0].unit or f"{metric.pairs}s"
        yield Column(model.id, task, metric, unit, n, whole, tuple(told), said)


def _measured(own: Sequence[Found], task: TaskEntry) -> int | None:
    """The units that this model had under the same limit."""
    same = [f.record for f in own if f.record.cell.get("limit") == task.limit]
    return next((m.n for record in same for m in record.metrics if m.n), None)


def _sources(metric: Metric, found: Sequence[Found], rows: frozenset[str]) -> Iterator[Source]:
    """The differences of the earlier rows, of those that are planned where there are such."""
    quantized = [f for f in found if not f.floor and f.metric(metric.name) is not None]
    if metric.from_baseline:
        yield from _neighbours(metric, quantized)
        return
    pairs = [(f, s) for f in quantized if f.base is not None and (s := _spread(metric, f)) is not None]
    planned = [(f, s) for f, s in pairs if f.key in rows]
    for f, (spread, n) in planned or pairs:
        yield Source(f.row, spread, n)


def _neighbours(metric: Metric, found: Sequence[Found]) -> Iterator[Source]:
    """A number that is a distance from the baseline itself is compared between rows: each with the
    next larger one of the same run."""
    runs: dict[tuple[str, object, object], list[tuple[float, Metric, Found]]] = {}
    for f in found:
        if (m := f.metric(metric.name)) is not None and m.value is not None and f.base is not None:
            model = f.record.cell.get("model") or {}
            run = (f.record.folder, model.get("identity"), f.record.cell.get("limit"))
            runs.setdefault(run, []).append((m.value, m, f))
    for inside in runs.values():
        for (_, base, a), (_, ours, b) in pairwise(sorted(inside, key=lambda one: one[0])):
            if other_text(b.record, a.record) is None and (s := _of_pairs(ours, base)) is not None:
                yield Source(f"{a.row} and {b.row}", *s)


def _spread(metric: Metric, found: Found) -> tuple[Spread, int] | None:
    ours, base = found.metric(metric.name), found.base_metric(metric.name)
    assert found.base is not None
    if ours is None or base is None:
        return None
    if ours.pairs == "window" and other_text(found.record, found.base):
        return None
    return _of_pairs(ours, base)


def _of_pairs(ours: Metric, base: Metric) -> tuple[Spread, int] | None:
    """From the differences of their units, as the table's tests take them (report/compare.py)."""
    d = paired(ours, base)
    if d is None or isinstance(d, str) or len(d) < 2:
        return None
    if ours.change == "points":
        d = [x / SHARE_UNITS.get(ours.unit, 1.0) for x in d]
    if ours.pairs == "window":
        spread: Spread | None = spread_in_order(d)
    elif ours.change == "points" and all(x in (-1.0, 0.0, 1.0) for x in d):
        spread = spread_of_sides(sum(x != 0 for x in d), len(d))
    else:
        spread = spread_of_strangers(d)
    return None if spread is None else (spread, len(d))


def _from(told: Sequence[Source], kin: str, found: Sequence[Found]) -> str:
    if not told:
        return ""
    counts = sorted({s.n for s in told if s.n is not None})
    units = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    models = dict.fromkeys(str((f.record.cell.get("model") or {}).get("id", "?")) for f in found)
    whose = kin if kin == KIN[0] else f"{kin} ({', '.join(models)})"
    return f"earlier run of {whose}, {units} units"


def _without(metric: Metric, expected: Expected, few: Sequence[Source]) -> tuple[list[Source], str]:
    """What is told where no earlier run has enough."""
    measure = "measure with --limit 16 first"
    if metric.from_baseline or metric.change != "points" or metric.pairs == "window":
        if few:
            return [], f"unknown: an earlier run has {max(s.n or 0 for s in few)} units; {measure}"
        what = "no earlier run with two quantized rows" if metric.from_baseline else "no earlier run"
        return [], f"unknown: {what}; {measure}"
    if (variance := expected.draws.get(metric.name)) is not None:
        spread = Units(math.sqrt(variance), _MANY)
        said = "assumed, no earlier run: the draws alone, at their worst (every problem half solved)"
        return [Source("any row", spread, None)], said
    said = f"assumed, no earlier run: {100 * CHANGED:g}% of the {metric.pairs}s change sides"
    return [Source("any row", Sides(CHANGED), None)], said
