"""Which columns the records' numbers fill, and which record is shown where a row and a column meet.

A number that depends on the machine (a cost, or all numbers of a task that measures it) has a column
for each place it was measured at. The newest shows; what other results folders hold of the same goes
along.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from qeval.core.record import Metric, Record
from qeval.report import columns as col
from qeval.report.places import Place, in_order, place_of
from qeval.report.row_records import RowRecords, age, order, task_id
from qeval.report.table import Column
from qeval.store.results import task_title


@dataclass(frozen=True)
class FoundCell:
    """The record behind a cell of the table, with its metric where it has one; and the same cell as
    other folders have it, newest first."""

    record: Record
    metric: Metric | None
    others: tuple[tuple[Record, Metric], ...] = ()


@dataclass
class Filled:
    """A column and the tasks that fill it; ``titles``: as the spec calls them."""

    column: Column
    tasks: set[str]
    titles: set[str] = field(default_factory=set)

    def add(self, record: Record) -> None:
        self.tasks.add(task_id(record))
        label = str((record.cell.get("task") or {}).get("label", "?"))
        self.titles.add(task_title(label, record.cell.get("limit")))


Cells = Mapping[str, FoundCell | None]
"""By column id. None: not run."""


def places(rows: Sequence[RowRecords]) -> list[Place]:
    """Where numbers come from that have a column for each place."""
    records = [record for row in rows for record in row.evals]
    found = {_place(r, metric) for r in records for metric in (None, *shown(r))}
    return in_order(place for place in found if place is not None)


def metric_columns(rows: Sequence[RowRecords], named: Mapping[Place, str]) -> dict[str, Filled]:
    """By id, in the order of the tasks; those of one metric side by side, place by place. A task
    without any number yet has a single column."""
    records = sorted((r for row in rows for r in row.evals), key=lambda r: order(r, 2))
    found: dict[str, dict[Place | None, Filled]] = {}
    silent: dict[tuple[str, Place | None], Record] = {}
    for record in records:
        task = task_id(record)
        for metric in shown(record):
            column = col.metric_column(metric, record.cell.get("limit"))
            place = _place(record, metric)
            column, general = col.at(column, place, named), column.id
            found.setdefault(general, {}).setdefault(place, Filled(column, set())).add(record)
        silent.setdefault((task, _place(record, None)), record)
    for by_place in found.values():
        for place, filled in by_place.items():
            for task in filled.tasks:
                silent.pop((task, place), None)
                silent.pop((task, None), None)
    for (_, place), record in silent.items():
        column = col.task_column(str((record.cell.get("task") or {}).get("label", "?")))
        column, general = col.at(column, place, named), column.id
        found.setdefault(general, {}).setdefault(place, Filled(column, set())).add(record)
    every = [by_place[p] for by_place in found.values() for p in _sorted(by_place)]
    return {filled.column.id: filled for filled in every}


def cells(source: RowRecords, columns: Mapping[str, Filled], named: Mapping[Place, str]) -> Cells:
    """For each column its metric, else the record that should have given it."""
    found: dict[str, list[tuple[Record, Metric]]] = {}
    for record in source.evals:
        for metric in shown(record) if record.status == "ok" else ():
            column = col.metric_column(metric, record.cell.get("limit"))
            name = col.at(column, _place(record, metric), named).id
            found.setdefault(name, []).append((record, metric))
    return {
        name: _newest(found[name]) if name in found else _silent(source, filled)
        for name, filled in columns.items()
    }


def elsewhere(source: RowRecords, filled: Filled) -> bool:
    """Whether the row has what fills this column, but from other places only."""
    return any(task in source.by_task for task in filled.tasks)


def _newest(pairs: Sequence[tuple[Record, Metric]]) -> FoundCell:
    """Of equal age the last. What the same folder held before was measured again, and is gone."""
    by_age = sorted(enumerate(pairs), key=lambda item: (age(item[1][0]), item[0]), reverse=True)
    (record, metric), *rest = (pair for _, pair in by_age)
    others: dict[str, tuple[Record, Metric]] = {}
    for pair in rest:
        if pair[0].folder != record.folder:
            others.setdefault(pair[0].folder, pair)
    return FoundCell(record, metric, tuple(others.values()))


def _silent(source: RowRecords, filled: Filled) -> FoundCell | None:
    place = filled.column.place
    records = [
        record
        for task in filled.tasks
        for record in source.by_task.get(task, ())
        if place is None or _place(record, None) in (None, place)
    ]
    if place is not None:  # a number of theirs stands in another column
        records = [r for r in records if not r.metrics or _place(r, None) == place]
    return FoundCell(records[-1], None) if records else None


def _place(record: Record, metric: Metric | None) -> Place | None:
    """Where a metric was measured, if that decides it; ``metric`` None: any of the record's. What was
    skipped is skipped everywhere."""
    if record.status == "skipped":
        return None
    decides = "conditions" in record.cell or (metric is not None and metric.cost)
    return place_of(record) if decides else None


def shown(record: Record) -> list[Metric]:
    """The metrics that have a column."""
    return [metric for metric in record.metrics if metric.shown]


def _sorted(by_place: Iterable[Place | None]) -> list[Place | None]:
    found = list(by_place)
    return [*([None] if None in found else []), *in_order(p for p in found if p is not None)]
