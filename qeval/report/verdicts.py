"""What rows decide together: how many were compared, what the floors are, which gains look too good."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace

from qeval.report.compare import corrected
from qeval.report.table import Column, Entry, TableRow

GAIN = (
    "better than the float model by more than chance: look twice; a text that calibration has seen, "
    "another tokenizer or another engine is likelier than a gain"
)


def judged(
    rows: Sequence[TableRow],
    groups: Sequence[Hashable],
    columns: Sequence[Column],
    note: Callable[[str], int],
) -> list[TableRow]:
    """The rows with Holm's correction of their p-values, entries at their floor marked, and a note on
    gains beyond their interval.

    Args:
        groups: for each row what its differences are from; None: nothing.
        note: numbers a footnote.
    """
    found = [dict(row.entries) for row in rows]
    for column in columns:
        for group in dict.fromkeys(g for g in groups if g is not None):
            together = [i for i, g in enumerate(groups) if g == group and not rows[i].floor]
            _correct(column, [found[i] for i in together], note)
        for i in at_floor(rows, column):
            found[i][column.id] = replace(found[i][column.id], at_floor=True)
    return [replace(row, entries=entries) for row, entries in zip(rows, found, strict=True)]


def _correct(column: Column, rows: Sequence[dict[str, Entry]], note: Callable[[str], int]) -> None:
    with_one = [row for row in rows if row[column.id].difference is not None]
    changes = corrected([d for row in with_one if (d := row[column.id].difference) is not None])
    for row, change in zip(with_one, changes, strict=True):
        entry = replace(row[column.id], difference=change)
        gain = change.value < 0 if column.better == "lower" else change.value > 0
        if change.significant and gain and column.better != "none" and not column.cost:
            entry = replace(entry, notes=tuple(dict.fromkeys((*entry.notes, note(GAIN)))))
        row[column.id] = entry


def at_floor(rows: Sequence[TableRow], column: Column) -> Iterator[int]:
    """The rows whose distance from the baseline is no larger than what it differs by from itself:
    with rounding noise, in batches of another size and, for rows of another engine than the
    baseline's, in the other engine."""
    if not column.from_baseline:
        return
    for i, row in enumerate(rows):
        entry = row.entries[column.id]
        if entry.value is None or row.floor or row.baseline or column.better != "lower":
            continue
        engine = next((r.engine for r in rows if r.model == row.model and r.baseline), row.engine)
        kinds = {"rounding", "repetition"} | ({"engine"} if row.engine != engine else set())
        floors = [
            bound
            for r in rows
            if r.model == row.model and r is not row and (kind := _floor(r)) in kinds
            if kind != "engine" or r.engine == row.engine
            if (bound := _upper(r.entries[column.id])) is not None
        ]
        lower = entry.value if entry.low is None else entry.low
        if floors and lower <= max(floors):
            yield i


def _floor(row: TableRow) -> str:
    """What a row is a floor for; the baseline in another engine is one for the rows of that engine."""
    return row.floor or ("engine" if row.twin else "")


def _upper(entry: Entry) -> float | None:
    return entry.value if entry.high is None else entry.high
