"""Everything that results hold as tidy data: one metric a line, in raw units (shares, bytes, seconds).

A line has the metric's own interval, its difference from the baseline and the conditions that it was
measured under. Metrics that tables do not show (tails of a divergence) have lines, too; a cell without
a number has one with its status and reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from qeval.core.record import Metric, Record
from qeval.report.compare import MARGINS, Margins
from qeval.report.draft import Draft, draft_of
from qeval.report.places import UNKNOWN, place_of
from qeval.report.rows import NONE, build_table, value_entry
from qeval.report.table import Column, Entry, Table, TableRow

_ROW = ("model", "dtype", "row", "method", "engine", "baseline", "simulated", "floor")
_METRIC = ("task", "metric", "protocol", "limit", "value", "low", "high", "stderr", "n", "unit")
_STATE = ("better", "accounted", "status", "notes")
_CHANGE = ("difference", "difference_low", "difference_high", "difference_kind", "p", "p_holm")
_VERDICT = ("significant", "equivalent", "detectable", "at_floor")
_WHERE = ("conditions", "host", "device", "device_name", "n_threads", "batch_size", "engine_version")
_WHEN = ("qeval", "git_commit", "measured", "folder")
FIELDS = ("key", *_ROW, *_METRIC, *_STATE, *_CHANGE, *_VERDICT, *_WHERE, *_WHEN)
"""The keys of a line, in their order."""

Line = dict[str, object]


def tidy(
    records: Iterable[Record], baseline: str | None = None, margins: Margins = MARGINS
) -> list[Line]:
    """A line a metric, each with all ``FIELDS``; None where there is nothing to say. ``key`` is the
    cell's, and None for what belongs to the row (bytes, times of building).

    Raises:
        UsageError: no row is called ``baseline``.
    """
    records = list(records)
    draft = draft_of(records, baseline, margins)
    table = build_table(records, columns=["*"], baseline=baseline, margins=margins)
    return tidy_of(draft, table)


def tidy_of(draft: Draft, table: Table) -> list[Line]:
    """The same, from the records' draft and their table with all columns."""
    return [line for i, row in enumerate(table.rows) for line in _row(draft, table, i, row)]


def _row(draft: Draft, table: Table, i: int, row: TableRow) -> Iterator[Line]:
    said = _named(draft, i, row)
    seen: dict[str, Record] = {}
    for column in table.columns:
        entry = row.entries[column.id]
        found = draft.cells[i].get(column.id)
        if found is None and entry.status == NONE:
            continue
        record = found.record if found else None
        metric = found.metric if found else None
        if record is not None:
            seen.setdefault(record.key, record)
        if entry.value is None and entry.status == NONE and metric is None:
            continue  # not measured, or a cost that simulated weights do not have
        yield _line(said, column, entry, table, record, metric)
    for record in seen.values():
        for metric in record.metrics:
            if not metric.shown:
                limit = record.cell.get("limit")
                column = Column(metric.name, metric.name, metric.unit, metric.protocol, limit)
                yield _line(said, column, value_entry(metric), table, record, metric)


def _named(draft: Draft, i: int, row: TableRow) -> Line:
    return {
        "model": row.model,
        "dtype": row.dtype or None,
        "row": row.quantization,
        "method": draft.rows[i].quantization.get("name"),
        "engine": row.engine,
        "baseline": row.baseline,
        "simulated": row.marked,
        "floor": row.floor or None,
    }


def _line(
    said: Line, column: Column, entry: Entry, table: Table, record: Record | None, metric: Metric | None
) -> Line:
    change = entry.difference
    notes = [table.footnotes[n - 1] for n in entry.notes]
    task = None if record is None else (record.cell.get("task") or {}).get("label")
    line: Line = {
        "key": record.key if record else None,
        **said,
        "task": task,
        "metric": None if column.kind == "task" else column.name,
        "protocol": column.protocol or None,
        "limit": column.limit,
        "value": entry.value,
        "low": entry.low,
        "high": entry.high,
        "stderr": metric.stderr if metric and entry.value is not None else None,
        "n": metric.n if metric else None,
        "unit": column.unit or None,
        "better": column.better if column.kind == "metric" else None,
        "accounted": entry.accounted,
        "status": entry.status or "ok",
        "notes": "; ".join(notes) or None,
        "difference": change.value if change else None,
        "difference_low": change.low if change else None,
        "difference_high": change.high if change else None,
        "difference_kind": change.kind if change else None,
        "p": change.p if change else None,
        "p_holm": change.adjusted if change else None,
        "significant": change.significant if change else None,
        "equivalent": change.equivalent if change else None,
        "detectable": change.detectable if change else None,
        "at_floor": entry.at_floor,
        **_conditions(record, column),
    }
    return {name: line[name] for name in FIELDS}


def _conditions(record: Record | None, column: Column) -> Line:
    """Of the record; of a cost that several records decide, the column's place."""
    place = place_of(record) if record else column.place
    found = record.conditions if record else None
    provenance = record.provenance if record else {}
    end = record.timing.get("end") if record else None
    return {
        "conditions": place.words() if place and place != UNKNOWN else None,
        "host": place.host if place else None,
        "device": place.device if place else None,
        "device_name": place.device_name if place else None,
        "n_threads": place.n_threads if place else None,
        "batch_size": found.batch_size if found else None,
        "engine_version": found.engine_version if found else None,
        "qeval": provenance.get("qeval"),
        "git_commit": provenance.get("git_commit"),
        "measured": datetime.fromtimestamp(end, UTC).isoformat(timespec="seconds") if end else None,
        "folder": record.folder or None if record else None,
    }
