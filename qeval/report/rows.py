"""Records to a table: one row a quantized model, differences from the model's baseline.

A row shows what its newest ``ok`` records say; a cell without one shows why. Whatever a reader has to
know about a number (a fall-back, a drift, an error) becomes a numbered footnote at that number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qeval.record import Metric, Record
from qeval.report import columns as col
from qeval.report.compare import Difference, difference
from qeval.report.costs import Facts, accounted, costs
from qeval.report.legend import legend
from qeval.report.sources import Source, baselines, names, order, sources, task_id
from qeval.report.table import Column, Entry, Layout, Row, Table
from qeval.store import latest

NONE, PENDING = "–", "…"
_Z = 1.959963984540054  # 0.975 quantile of the normal distribution


@dataclass(frozen=True)
class _Found:
    """The record behind a cell of the table, with its metric where it has one."""

    record: Record
    metric: Metric | None


_Cells = Mapping[str, _Found | None]  # by column id; None: not run


class _Notes:
    """Numbered footnotes; the same text keeps its number."""

    def __init__(self) -> None:
        self.texts: dict[str, int] = {}

    def number(self, text: str) -> int:
        line = next((part.strip() for part in text.splitlines() if part.strip()), "no reason recorded")
        return self.texts.setdefault(line, len(self.texts) + 1)

    def numbers(self, texts: Iterable[str]) -> tuple[int, ...]:
        return tuple(dict.fromkeys(self.number(text) for text in texts))


def build_table(
    records: Iterable[Record],
    *,
    wide: bool = False,
    columns: Sequence[str] | None = None,
    layout: Layout = "full",
) -> Table:
    """The table of the newest records.

    Args:
        wide: every memory notion and the times, not the short form.
        columns: names or globs of the columns to show, of all that ``wide`` has.
        layout: ``starcoder2``: model, quantization, HumanEval pass@1, pass@10 and VRAM only.

    Raises:
        UsageError: an entry of ``columns`` matches nothing.
    """
    found = sources(list(latest(records).values()))
    filled = _metric_columns(found)
    facts, memory_task = costs(found)
    shown = _chosen([c for c, _ in filled.values()], facts, wide, columns, layout)
    cells = [_found(source, filled) for source in found]
    notes = _Notes()
    rows = []
    for i, (base, shown_as) in enumerate(zip(baselines(found), names(found), strict=True)):
        theirs = {} if base is None or layout == "starcoder2" else cells[base]
        rows.append(_row(found[i], shown_as, shown, (cells[i], theirs, facts[i]), notes))
    table = Table(tuple(shown), tuple(rows), tuple(notes.texts), layout=layout)
    contexts = {int(fact["context"]) for fact in facts if "context" in fact}
    return replace(table, legend=legend(table, memory_task, contexts))


def _metric_columns(rows: Sequence[Source]) -> dict[str, tuple[Column, set[str]]]:
    """Column id -> the column and the tasks that fill it, in the order of the tasks."""
    records = sorted((r for row in rows for r in row.evals), key=lambda r: order(r, 2))
    found: dict[str, tuple[Column, set[str]]] = {}
    silent: dict[str, Record] = {}
    for record in records:
        task = task_id(record)
        for metric in record.metrics:
            column = col.metric_column(metric, record.cell.get("limit"))
            found.setdefault(column.id, (column, set()))[1].add(task)
        silent.setdefault(task, record)
    for task in {task for _, tasks in found.values() for task in tasks}:
        del silent[task]
    for task, record in silent.items():
        column = col.task_column(str((record.cell.get("task") or {}).get("label", "?")))
        found.setdefault(column.id, (column, set()))[1].add(task)
    return found


def _chosen(
    quality: Sequence[Column],
    facts: Sequence[Facts],
    wide: bool,
    patterns: Sequence[str] | None,
    layout: Layout,
) -> list[Column]:
    known = {name for fact in facts for name in fact}
    times = [c for c in col.TIMES if c.name in known]
    if patterns:
        return col.select([*col.memory_columns(known, every=True), *quality, *times], patterns)
    if layout == "starcoder2":
        return col.starcoder2_columns(quality, known)
    return [*col.memory_columns(known, wide=wide), *quality, *(times if wide else [])]


def _found(source: Source, filled: Mapping[str, tuple[Column, set[str]]]) -> _Cells:
    """For each column its metric, else the record that should have given it, else None (not run)."""
    metrics = {
        col.metric_column(metric, record.cell.get("limit")).id: _Found(record, metric)
        for record in source.evals
        if record.status == "ok"
        for metric in record.metrics
    }
    return {name: metrics.get(name) or _silent(source, tasks) for name, (_, tasks) in filled.items()}


def _silent(source: Source, tasks: Iterable[str]) -> _Found | None:
    records = [record for task in tasks for record in source.by_task.get(task, ())]
    return _Found(records[-1], None) if records else None


def _row(
    source: Source,
    shown_as: tuple[str, str],
    columns: Sequence[Column],
    data: tuple[_Cells, _Cells, Facts],
    notes: _Notes,
) -> Row:
    """``data``: this row's cells, its baseline's, and its costs."""
    mine, theirs, facts = data
    marks = notes.numbers(source.artifact.get("notes", ()))
    entries = {}
    for c in columns:
        if c.kind in ("memory", "time"):
            entries[c.id] = _cost(c, source, facts)
        elif c.id in mine:
            entries[c.id] = _entry(c, source, mine[c.id], theirs.get(c.id), notes)
        else:
            entries[c.id] = Entry(status=NONE)
    return Row(
        model=shown_as[0],
        dtype=source.dtype,
        quantization=shown_as[1],
        baseline=source.baseline,
        simulated=source.simulated,
        low_bits=bool(source.low_bits),
        entries=entries,
        notes=marks,
    )


def _cost(column: Column, source: Source, facts: Facts) -> Entry:
    value = facts.get(column.name)
    if value is None:
        return Entry(status=NONE)
    return Entry(value, accounted=accounted(source, column.name))


def _entry(
    column: Column, source: Source, found: _Found | None, base: _Found | None, notes: _Notes
) -> Entry:
    if found is None:
        return Entry(status=PENDING)
    record = found.record
    if record.status == "skipped" and source.costs_as_float:
        return Entry(status=NONE)  # the legend's line on simulated rows says why
    if record.status != "ok":
        return Entry(status=record.status, notes=notes.numbers([_reason(record)]))
    if found.metric is None or (source.costs_as_float and column.unit in col.COST_UNITS):
        return Entry(status=NONE)
    said = _own_notes(found, source)
    change = _difference(found, base)
    if isinstance(change, str):
        said.append(f"no difference shown: {change}")
        change = None
    return replace(_value(found.metric), difference=change, notes=notes.numbers(said))


def _reason(record: Record) -> str:
    """Why there is no number, and where the job's log is, relative to the results folder."""
    error = next(iter((record.error or "").strip().splitlines()), "no reason recorded")
    log = f" (log: {record.log})" if record.log and record.status != "skipped" else ""
    return f"{record.status}: {error}{log}"


def _own_notes(found: _Found, source: Source) -> list[str]:
    """A record's notes stand at its first metric; those of the artifact stand at the row's name."""
    first = found.record.metrics[0] is found.metric
    shared = source.artifact.get("notes", ())
    return [text for text in found.record.notes if text not in shared] if first else []


def _value(metric: Metric) -> Entry:
    if metric.value is None:
        share = f"broken ({100 * metric.nonfinite:.3g}% not finite)" if metric.nonfinite else NONE
        return Entry(status=share)
    if metric.low is not None and metric.high is not None:
        return Entry(metric.value, low=metric.low, high=metric.high)
    if metric.stderr is None:
        return Entry(metric.value)
    half = _Z * metric.stderr
    return Entry(metric.value, half, metric.value - half, metric.value + half)


def _difference(ours: _Found, base: _Found | None) -> Difference | str | None:
    if base is None or base.metric is None or ours.metric is None:
        return None
    for name, what in (("text_sha256", "text"), ("tokens_sha256", "tokens")):
        if ours.metric.name == "ppl" and _sha(ours, name) != _sha(base, name):
            return f"other {what} than the baseline's"
    return difference(ours.metric, base.metric)


def _sha(found: _Found, name: str) -> Any:
    return found.record.provenance.get(name)
