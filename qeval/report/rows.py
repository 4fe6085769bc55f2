"""Records to a table: one row a quantized model, differences from the model's baseline.

A row shows what its newest ``ok`` records say; a cell without one shows why. Whatever a reader has to
know about a number (a fall-back, a drift, an error) becomes a numbered footnote at that number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from qeval.core.errors import UsageError, did_you_mean, first_line
from qeval.core.record import Metric, Record
from qeval.report import columns as col
from qeval.report.compare import MARGINS, Margins, flips, mcnemar_p
from qeval.report.costs import Costs, accounted
from qeval.report.draft import Draft, draft_of, from_baseline
from qeval.report.fill import Filled, FoundCell, elsewhere, shown
from qeval.report.format import value_text
from qeval.report.legend import TableFacts, legend
from qeval.report.places import place_of
from qeval.report.row_records import RowRecords, baselines, names, task_id
from qeval.report.table import Column, Entry, Table, TableRow
from qeval.report.verdicts import at_floor, judged
from qeval.stats.intervals import half_width
from qeval.store.results import cell_name, is_meant
from qeval.tasks.layouts import LAYOUTS

NONE, PENDING = "–", "…"


class Notes:
    """Numbered footnotes; the same text keeps its number."""

    def __init__(self) -> None:
        self.texts: dict[str, int] = {}

    def number(self, text: str) -> int:
        line = first_line(text) or "no reason recorded"
        return self.texts.setdefault(line, len(self.texts) + 1)

    def numbers(self, texts: Iterable[str]) -> tuple[int, ...]:
        return tuple(dict.fromkeys(self.number(text) for text in texts))


def build_table(
    records: Iterable[Record],
    *,
    wide: bool = False,
    columns: Sequence[str] | None = None,
    layout: str = "full",
    baseline: str | None = None,
    sort: str | None = None,
    only: Sequence[str] = (),
    margins: Margins = MARGINS,
    pair: tuple[str, str] | None = None,
) -> Table:
    """The table of the newest records.

    Args:
        wide: every memory notion and the times, not the short form.
        columns: names or globs of the columns to show, of all that ``wide`` has.
        layout: a short table by its name (tasks/layouts.py), without differences.
        baseline: label or method of the rows that differences are taken from; the records' own.
        sort: name or glob of the column that orders the rows of each model, smallest first; after a
            ``-`` largest first.
        only: rows and columns of cells whose name, method or task has one of these in it. Differences
            are still from the baseline.
        margins: differences within which a row is equivalent to its baseline.
        pair: two rows by label or method; only these, and the second's differences from the first.

    Raises:
        UsageError: ``columns``, ``baseline``, ``sort`` or ``only`` match nothing.
    """
    draft = draft_of(records, pair[0] if pair else baseline, margins)
    if pair is not None:
        _keep_pair(draft, pair)
    draft, filled = _only(draft, only)
    chosen = _chosen(draft, filled, wide, columns, layout)
    if sort is not None:
        _sort(draft, sort)
    notes = Notes()
    bases, shown_as = baselines(draft.rows), names(draft.rows)
    rows = []
    for i in draft.shown:
        base = bases[i] if layout == "full" else None
        rows.append(_row(draft, i, base, shown_as[i], chosen, notes))
    groups = [bases[i] if layout == "full" else None for i in draft.shown]
    rows = judged(rows, groups, chosen, notes.number)
    table = Table(tuple(chosen), tuple(rows), tuple(notes.texts), layout=layout)
    said = legend(table, _facts(draft, shown_as, bases))
    pooled = _pooled(draft, bases, shown_as) if layout == "full" else []
    return replace(table, legend=(*said, *pooled))


def _keep_pair(draft: Draft, pair: tuple[str, str]) -> None:
    """Raises UsageError where the second of the two is no row; the first was found before."""
    draft.shown = [i for i in draft.shown if pair[1] in draft.rows[i].names or draft.rows[i].baseline]
    if not any(not draft.rows[i].baseline for i in draft.shown):
        names = [name for row in draft.rows for name in row.names]
        raise UsageError(f"no row is called {pair[1]!r}{did_you_mean(pair[1], names)}")


def _pooled(
    draft: Draft, bases: Sequence[int | None], shown_as: Sequence[tuple[str, str]]
) -> list[str]:
    """A line for each row on all items together that pass or fail, where several tasks have such."""
    lines = []
    for i in draft.shown:
        base = bases[i]
        if base is None or draft.rows[i].floor:
            continue
        tasks = [
            d
            for name, found in draft.cells[i].items()
            if found is not None and (theirs := draft.cells[base].get(name)) is not None
            if (d := flips(found.metric, theirs.metric)) is not None
        ]
        if len(tasks) > 1:
            every = [x for d in tasks for x in d]
            gained, lost = every.count(1.0), every.count(-1.0)
            p = mcnemar_p(gained, lost)
            lines.append(
                f"{shown_as[i][1]}, all {len(every):,} items of {len(tasks)} tasks: {lost} lost and "
                f"{gained} gained, p = {p:.2g} (McNemar)"
            )
    return lines


def _only(draft: Draft, patterns: Sequence[str]) -> tuple[Draft, list[Filled]]:
    """The rows and metric columns of the cells that ``patterns`` mean."""
    if not patterns:
        return draft, list(draft.columns.values())
    tasks: set[str] = set()
    shown = []
    for i, row in enumerate(draft.rows):
        meant = [task_id(r) for r in row.evals if is_meant(patterns, *_cell_names(r))]
        tasks.update(meant)
        shown += [i] if meant else []
    if not shown:
        name = cell_name(draft.rows[0].evals[0].cell) if draft.rows else ""
        raise UsageError(f"--only {' '.join(patterns)}: no cell has that in its name, such as {name!r}")
    return replace(draft, shown=shown), [f for f in draft.columns.values() if f.tasks & tasks]


def _cell_names(record: Record) -> list[str]:
    parts = (record.cell.get("quantization") or {}, record.cell.get("task") or {})
    return [cell_name(record.cell), *(str(part.get("name", "?")) for part in parts)]


def _chosen(
    draft: Draft,
    filled: Sequence[Filled],
    wide: bool,
    patterns: Sequence[str] | None,
    layout: str,
) -> list[Column]:
    facts = [draft.costs[i].facts for i in draft.shown]
    quality = [f.column for f in filled]
    if patterns:
        memory = col.memory_columns(facts, draft.places, every=True)
        return col.select([*memory, *quality, *col.time_columns(facts, draft.hosts)], patterns)
    if layout != "full":
        return col.layout_columns(LAYOUTS[layout], quality, facts, draft.places)
    times = col.time_columns(facts, draft.hosts) if wide else []
    return [*col.memory_columns(facts, draft.places, wide=wide), *quality, *times]


def _sort(draft: Draft, pattern: str) -> None:
    """Put the rows in the order of a column's values, models as they stand; rows without one last."""
    falling, name = pattern.startswith("-"), pattern.removeprefix("-")
    facts = [one.facts for one in draft.costs]
    memory = col.memory_columns(facts, draft.places, every=True)
    quality = [filled.column for filled in draft.columns.values()]
    column = col.one([*memory, *quality, *col.time_columns(facts, draft.hosts)], name)
    models = list(dict.fromkeys(row.identity for row in draft.rows))

    floored = _at_floor(draft, column)

    def place(i: int) -> tuple[int, bool, float]:
        value = 0.0 if i in floored else _raw_value(draft, i, column)  # none of them below another
        model = models.index(draft.rows[i].identity)
        return model, value is None, 0.0 if value is None else -value if falling else value

    draft.shown.sort(key=place)


def _at_floor(draft: Draft, column: Column) -> set[int]:
    rows = [
        TableRow(
            row.identity,
            dtype="",
            quantization="",
            engine=row.engine,
            baseline=row.baseline,
            simulated=False,
            entries={column.id: value_entry(cell.metric) if cell and cell.metric else Entry()},
            floor=row.floor,
            twin=row.twin,
        )
        for row, found in zip(draft.rows, draft.cells, strict=True)
        for cell in [found.get(column.id)]
    ]
    return set(at_floor(rows, column))


def _raw_value(draft: Draft, i: int, column: Column) -> float | None:
    if column.kind in ("memory", "time"):
        return draft.costs[i].facts.get((column.name, column.place))
    found = draft.cells[i].get(column.id)
    hidden = draft.rows[i].costs_as_float and column.cost
    return None if found is None or found.metric is None or hidden else found.metric.value


def _row(
    draft: Draft,
    i: int,
    base: int | None,
    shown_as: tuple[str, str],
    columns: Sequence[Column],
    notes: Notes,
) -> TableRow:
    """``base``: the row that differences are taken from."""
    source, mine = draft.rows[i], draft.cells[i]
    theirs = {} if base is None else draft.cells[base]
    ways = {c.id: _other_way(source, mine.get(c.id), theirs.get(c.id)) for c in columns if not c.place}
    common = set(ways.values()) - {None}
    shared = common if len(common) == 1 else set()  # then it stands once, at the row's name
    marks = notes.numbers([*source.artifact.get("notes", ()), *(text for text in shared if text)])
    entries = {}
    for c in columns:
        if c.kind in ("memory", "time"):
            entries[c.id] = _cost(c, source, draft.costs[i], notes)
        elif c.id in mine:
            pair = (mine[c.id], theirs.get(c.id))
            way = None if shared else ways.get(c.id)
            entries[c.id] = _entry(draft.columns[c.id], source, pair, way, notes, draft.margins)
        else:
            entries[c.id] = Entry(status=NONE)
    return TableRow(
        model=shown_as[0],
        dtype=source.dtype,
        quantization=shown_as[1],
        engine=source.engine,
        baseline=source.baseline,
        simulated=source.simulated,
        low_bits=bool(source.low_bits),
        floor=source.floor,
        twin=source.twin,
        entries=entries,
        notes=marks,
    )


def _cost(column: Column, source: RowRecords, found: Costs, notes: Notes) -> Entry:
    value = found.facts.get((column.name, column.place))
    if value is None:
        return Entry(status=NONE)
    said = []
    if column.place in found.tasks and found.tasks[column.place][0] != found.tasks[column.place][1]:
        own, usual = found.tasks[column.place]
        said.append(f"peak during the task {own}, not {usual} as in the model's other rows")
    return Entry(value, accounted=accounted(source, column.name), notes=notes.numbers(said))


def _entry(
    filled: Filled,
    source: RowRecords,
    pair: tuple[FoundCell | None, FoundCell | None],
    way: str | None,
    notes: Notes,
    margins: Margins,
) -> Entry:
    """``pair``: the row's own cell and its baseline's; ``way``: how they ran differently."""
    (found, base), column = pair, filled.column
    if found is None:
        return _without_record(filled, source, notes)
    record = found.record
    if record.status == "skipped" and source.costs_as_float:
        return Entry(status=NONE)  # the legend's line on simulated rows says why
    if record.status != "ok":
        return Entry(status=record.status, notes=notes.numbers([_reason(record)]))
    if found.metric is None or (source.costs_as_float and column.cost):
        return Entry(status=NONE)
    said = [*_own_notes(found, source), *_twice(column, found)]
    change = from_baseline(found, base, margins)
    if isinstance(change, str):
        said.append(f"no difference shown: {change}")
        change = None
    elif change is not None:
        said += [way] if way else []
        said += _versions(found, base) if column.place else []
    return replace(value_entry(found.metric), difference=change, notes=notes.numbers(said))


def _without_record(filled: Filled, source: RowRecords, notes: Notes) -> Entry:
    """What the spec's plan has for a cell that nobody ran; where there is no spec, it is to be run."""
    if source.floor or elsewhere(source, filled):
        return Entry(status=NONE)
    if source.planned is None:
        return Entry(status=PENDING)
    reasons = [source.planned[title] for title in sorted(filled.titles) if title in source.planned]
    if not reasons:
        return Entry(status=NONE)
    if not all(reasons):
        return Entry(status=PENDING)
    if source.costs_as_float:
        return Entry(status=NONE)  # the legend's line on simulated rows says why
    return Entry(status="skipped", notes=notes.numbers([f"skipped: {reasons[0]}"]))


def _other_way(source: RowRecords, found: FoundCell | None, base: FoundCell | None) -> str | None:
    """One line where a quality and its baseline's come from other engines or devices, which give
    slightly other numbers for the same weights."""
    if found is None or base is None or found.metric is None or base.metric is None:
        return None
    engines = [source.engine, str((base.record.cell.get("engine") or {}).get("name", "?"))]
    devices = [_device(found.record), _device(base.record)]
    ours, theirs = engines
    if engines[0] == engines[1] and (devices[0] == devices[1] or None in devices):
        return None
    if engines[0] == engines[1]:
        ours, theirs = str(devices[0]), str(devices[1])
    elif devices[0] != devices[1] and None not in devices:
        ours, theirs = (f"{e} on {d}" for e, d in zip(engines, devices, strict=True))
    return f"runs on {ours}, the baseline on {theirs}"


def _device(record: Record) -> str | None:
    place = place_of(record)
    return place.device_name or place.device


def _versions(found: FoundCell, base: FoundCell | None) -> list[str]:
    """One line where a cost and its baseline's were measured with other versions of one engine."""
    assert base is not None
    if found.record.cell.get("engine") != base.record.cell.get("engine"):
        return []
    ours, theirs = (c.engine_version if (c := r.record.conditions) else None for r in (found, base))
    known = ours is not None and theirs is not None and ours != theirs
    return [f"measured with {ours}, the baseline with {theirs}"] if known else []


def _twice(column: Column, found: FoundCell) -> list[str]:
    """One line for what other folders have of the same cell, and why that is not shown."""
    if not found.others:
        return []
    assert found.metric is not None
    value = found.metric.value
    said = [
        f"{record.folder} has the same"
        if metric.value == value
        else f"{record.folder} has {value_text(column, value_entry(metric))}{_when(record)}"
        for record, metric in found.others
    ]
    differ = any(metric.value != value for _, metric in found.others)
    when = _when(found.record) if differ else ""
    return [f"from {found.record.folder}, the newest{when}; {'; '.join(said)}"]


def _when(record: Record) -> str:
    end = record.timing.get("end")
    return f" ({datetime.fromtimestamp(end, UTC):%Y-%m-%d %H:%M})" if end else ""


def _reason(record: Record) -> str:
    """Why there is no number, and where the job's log is, relative to the results folder."""
    error = first_line(record.error or "") or "no reason recorded"
    log = f" (log: {record.log})" if record.log and record.status != "skipped" else ""
    return f"{record.status}: {error}{log}"


def _own_notes(found: FoundCell, source: RowRecords) -> list[str]:
    """A record's notes are at its first metric, those of the artifact at the row's name."""
    first = shown(found.record)[0] is found.metric
    shared = source.artifact.get("notes", ())
    return [text for text in found.record.notes if text not in shared] if first else []


def value_entry(metric: Metric) -> Entry:
    if metric.value is None:
        share = f"broken ({100 * metric.nonfinite:.3g}% not finite)" if metric.nonfinite else NONE
        return Entry(status=share)
    if metric.low is not None and metric.high is not None:
        return Entry(metric.value, low=metric.low, high=metric.high)
    half = half_width(metric)
    if half is None:
        return Entry(metric.value)
    return Entry(metric.value, half, metric.value - half, metric.value + half)


def _facts(
    draft: Draft, shown_as: Sequence[tuple[str, str]], bases: Sequence[int | None]
) -> TableFacts:
    """For the legend; ``shown_as``: models and rows as they are called, ``bases``: their baselines."""
    named: dict[str, None] = {}
    tasks: dict[str, dict[str, None]] = {}
    contexts = set()
    for i in draft.shown:
        base = i if draft.rows[i].baseline else bases[i]
        named |= {} if base is None else {shown_as[base][1]: None}
        facts = draft.costs[i]
        for place, (own, usual) in facts.tasks.items():
            if own == usual and facts.peaks_at(place):
                tasks.setdefault(own, {})[shown_as[i][0]] = None
        if ("context", None) in facts.facts:
            contexts.add(int(facts.facts["context", None]))
    by_task = {task: tuple(models) for task, models in tasks.items()}
    return TableFacts(tuple(named), by_task, contexts, draft.margins)
