"""Two rows, metric by metric: both numbers, their paired difference, and what else differs.

Differences are those of the table (report/compare.py): of B from A, unit by unit, where the units are
the same; with Holm's correction for the rows that are compared in one metric. A cost (speed, memory)
is a ratio only where both were measured at the same place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from qeval.comparison.conditions import Differing, differing
from qeval.comparison.flips import Flips, Kept, flips
from qeval.comparison.sides import (
    SideRow,
    is_version,
    of_version,
    pairs_of_rows,
    pairs_of_sides,
    rows_of,
)
from qeval.core.errors import UsageError
from qeval.core.record import Metric, Record
from qeval.report.compare import MARGINS, Difference, Margins, corrected
from qeval.report.draft import from_baseline
from qeval.report.fill import FoundCell
from qeval.report.places import Place
from qeval.report.rows import value_entry
from qeval.report.table import Column, Entry

T = TypeVar("T")
Found = tuple[Column, FoundCell]
Passing = tuple[Record, Metric]


@dataclass(frozen=True)
class Compared:
    """One number of both rows. ``difference`` is B's from A; None with the ``reason``."""

    column: Column
    a: Entry
    b: Entry
    difference: Difference | None = None
    reason: str = ""


@dataclass(frozen=True)
class RowPair:
    """``only_a``, ``only_b``: ids of columns that one side alone has a number in."""

    a: str
    b: str
    metrics: tuple[Compared, ...]
    conditions: tuple[Differing, ...]
    flips: tuple[Flips, ...]
    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()


@dataclass(frozen=True)
class Compare:
    """``a``, ``b``: what was asked to compare; ``only_a``, ``only_b``: rows of one side alone."""

    a: str
    b: str
    rows: tuple[RowPair, ...]
    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()
    margins: Margins = field(default=MARGINS)


def compare_within(records: Iterable[Record], a: str, b: str, margins: Margins = MARGINS) -> Compare:
    """Two rows of one set of results, by label or method; or what two versions of qeval measured.

    Raises:
        UsageError: neither rows nor versions are called so.
    """
    records = list(records)
    try:
        pairs = pairs_of_rows(rows_of(records), a, b)
    except UsageError:
        if not (is_version(a) and is_version(b)):
            raise
        sides = (of_version(records, a), of_version(records, b))
        return compare_sides(*sides, f"qeval {a}", f"qeval {b}", margins)
    return Compare(a, b, _compared(pairs, margins), margins=margins)


def compare_sides(
    ours: Iterable[Record], theirs: Iterable[Record], a: str, b: str, margins: Margins = MARGINS
) -> Compare:
    """The rows that two sets of results have in common, the second's from the first's.

    Raises:
        UsageError: they have none in common.
    """
    pairs, left, right = pairs_of_sides(rows_of(ours), rows_of(theirs))
    if not pairs:
        raise UsageError(
            f"{a} and {b} have no row in common (label, engine and dtype): {_named(left)} there, "
            f"{_named(right)} here; two rows of different names: qeval compare ROW ROW {a} {b}"
        )
    only_a, only_b = (tuple(row.name for row in side) for side in (left, right))
    return Compare(a, b, _compared(pairs, margins), only_a, only_b, margins)


def _named(rows: Sequence[SideRow]) -> str:
    return ", ".join(dict.fromkeys(row.label for row in rows)) or "none"


def _compared(pairs: Sequence[tuple[SideRow, SideRow]], margins: Margins) -> tuple[RowPair, ...]:
    found = [_row_pair(a, b, margins) for a, b in pairs]
    tested: dict[str, list[tuple[int, int]]] = {}
    for i, pair in enumerate(found):
        for j, one in enumerate(pair.metrics):
            if one.difference is not None and one.difference.p is not None:
                tested.setdefault(one.column.id, []).append((i, j))
    metrics = [list(pair.metrics) for pair in found]
    for places in tested.values():
        changes = [c for i, j in places if (c := metrics[i][j].difference)]
        for (i, j), change in zip(places, corrected(changes), strict=True):
            metrics[i][j] = replace(metrics[i][j], difference=change)
    return tuple(replace(p, metrics=tuple(m)) for p, m in zip(found, metrics, strict=True))


def _row_pair(a: SideRow, b: SideRow, margins: Margins) -> RowPair:
    metrics, used_a, used_b = [], [], []
    for name in a.cells:
        for one, other in _together(a.cells[name], b.cells.get(name, ())):
            metrics.append(_metric(one, other, margins))
            used_a.append(one[1].record)
            used_b.append(other[1].record)
    for name in a.costs:
        for place_a, place_b in _together(a.costs[name], b.costs.get(name, ())):
            metrics.append(_cost(*place_a, *place_b))
    only_a, only_b = _alone(a, b), _alone(b, a)
    return RowPair(
        a.name,
        b.name,
        tuple(metrics),
        tuple(differing(used_a, used_b)),
        flips_of(a, b),
        only_a,
        only_b,
    )


def flips_of(a: SideRow, b: SideRow, read: Kept | None = None) -> tuple[Flips, ...]:
    """Of each task whose units pass or fail, those that changed sides. ``read``: samples of A, kept
    for the next row that it is compared with."""
    found = (flips(task, ours, theirs, read) for task, ours, theirs in _passing(a, b))
    return tuple(one for one in found if one is not None)


def _passing(a: SideRow, b: SideRow) -> Iterator[tuple[str, Passing, Passing]]:
    """The cells whose units pass or fail, by their first metric that says so: not pass@10 again."""
    seen = set()
    for name in a.cells:
        ours, theirs = a.cells[name][0][1], b.cells[name][0][1] if name in b.cells else None
        if theirs is None or not (ours.metric and theirs.metric) or ours.record.key in seen:
            continue
        if ours.metric.pairs in ("problem", "item") and ours.metric.change == "points":
            seen.add(ours.record.key)
            task = str((theirs.record.cell.get("task") or {}).get("label"))
            yield task, (ours.record, ours.metric), (theirs.record, theirs.metric)


def _together(
    ours: Sequence[tuple[Column, T]], theirs: Sequence[tuple[Column, T]]
) -> list[tuple[tuple[Column, T], tuple[Column, T]]]:
    """At the same place where both have one; else the first of each."""
    same = [(x, y) for x in ours for y in theirs if x[0].place == y[0].place]
    return same or [(x, y) for x in ours[:1] for y in theirs[:1]]


def _metric(one: Found, other: Found, margins: Margins) -> Compared:
    (column_a, a), (column_b, b) = one, other
    column = replace(column_a, where="")
    entries = _entry(a), _entry(b)
    if reason := _elsewhere(column_a.place, column_b.place):
        return Compared(column, *entries, reason=reason)
    if a.metric is None or b.metric is None:
        return Compared(column, *entries, reason="not measured on both sides")
    change = from_baseline(b, a, margins)
    if isinstance(change, str):
        return Compared(column, *entries, reason=change.replace("the baseline's", "A's"))
    return Compared(column, *entries, change)


def _entry(cell: FoundCell) -> Entry:
    if cell.metric is not None:
        return value_entry(cell.metric)
    return Entry(status=cell.record.status)


def _cost(column_a: Column, a: float, column_b: Column, b: float) -> Compared:
    column, entries = replace(column_a, where=""), (Entry(a), Entry(b))
    if reason := _elsewhere(column_a.place, column_b.place):
        return Compared(column, *entries, reason=reason)
    return Compared(column, *entries, Difference("ratio", b / a) if a else None)


def _elsewhere(a: Place | None, b: Place | None) -> str:
    if a == b:
        return ""
    words = [place.words() if place else "unknown" for place in (a, b)]
    return f"no ratio: measured on {words[0]} and on {words[1]}"


def _alone(one: SideRow, other: SideRow) -> tuple[str, ...]:
    return tuple(
        name
        for name, found in one.cells.items()
        if name not in other.cells and any(cell.metric for _, cell in found)
    )
