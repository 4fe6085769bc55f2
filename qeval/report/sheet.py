"""A table as lines of text in cells, before any renderer lays them out. One function a layout."""

from __future__ import annotations

from dataclasses import dataclass

from qeval.core.units import GIB
from qeval.report.format import SIMULATED, difference_text, marks, printed_unit, value_text
from qeval.report.table import Column, Entry, Table, TableRow
from qeval.tasks.layouts import LAYOUTS, Layout


@dataclass(frozen=True)
class SheetCell:
    lines: tuple[str, ...]
    style: str = (
        ""  # "better" or "worse", each also with "-slight" and "-much"; "bad", "label" or plain
    )


@dataclass(frozen=True)
class Section:
    """The rows of one model under its heading ("": the title says it, or a column does)."""

    heading: str
    rows: tuple[tuple[SheetCell, ...], ...]


@dataclass(frozen=True)
class Sheet:
    title: str
    headers: tuple[tuple[str, ...], ...]  # lines of each column's header
    right: tuple[bool, ...]  # columns that are aligned to the right
    sections: tuple[Section, ...]


def sheet(table: Table) -> Sheet:
    return _full(table) if table.layout == "full" else _short(table, LAYOUTS[table.layout])


def _full(table: Table) -> Sheet:
    several, with_dtype = len(table.models) > 1, len(table.dtypes) > 1
    first: tuple[tuple[str, ...], ...] = (("quantization",),)
    if with_dtype:
        first += (("dtype",),)
    title = "" if several or not table.rows else _titled(table, table.models[0])
    sections = []
    for model in table.models:
        rows = [_row(table, row, with_dtype) for row in table.rows if row.model == model]
        sections.append(Section(_titled(table, model) if several else "", tuple(rows)))
    headers = first + tuple(_header(c) for c in table.columns)
    right = (False,) * len(first) + tuple(c.kind in ("memory", "time") for c in table.columns)
    return Sheet(title, headers, right, tuple(sections))


def _titled(table: Table, model: str) -> str:
    """A model with its dtype, where no column says that."""
    dtypes = table.dtypes_of(model) if len(table.dtypes) == 1 else ()
    return ", ".join([model, *dtypes])


def _header(column: Column) -> tuple[str, ...]:
    unit = printed_unit(column)
    lines = [f"{column.title} {unit}".strip(), column.protocol, column.where]
    if column.limit:
        lines.append(f"[first {column.limit}]")
    return tuple(line for line in lines if line)


def _row(table: Table, row: TableRow, with_dtype: bool) -> tuple[SheetCell, ...]:
    cells = [SheetCell((_label(row),), "label")]
    if with_dtype:
        cells.append(SheetCell((row.dtype or "–",)))
    return (*cells, *(_cell(column, row.entries[column.id]) for column in table.columns))


def _label(row: TableRow) -> str:
    return row.quantization + (f" {SIMULATED}" if row.marked else "") + marks(row.notes)


def _cell(column: Column, entry: Entry) -> SheetCell:
    lines = [value_text(column, entry), difference_text(entry)]
    return SheetCell(tuple(line for line in lines if line), _style(column, entry))


_SLIGHT, _MUCH = 0.01, 0.10  # of a perplexity, or points of a share


def _style(column: Column, entry: Entry) -> str:
    if entry.value is None:
        return "" if entry.status in ("–", "…") else "bad"
    change = entry.difference
    if change is None or not change.significant:
        return ""
    if column.better == "none":
        return ""
    sign = "better" if (change.value > 0) == (column.better == "higher") else "worse"
    if change.kind not in ("relative", "points"):
        return sign
    size = abs(change.value)
    return (
        f"{sign}-slight"
        if change.equivalent or size < _SLIGHT
        else f"{sign}-much"
        if size >= _MUCH
        else sign
    )


# -- short layouts ------------------------------------------------------------------------------


def _short(table: Table, layout: Layout) -> Sheet:
    names = {model: model.rstrip("/").rsplit("/", 1)[-1] for model in table.models}
    if len(set(names.values())) < len(names):
        names = {model: model for model in names}
    rows = []
    before = None
    for row in table.rows:
        model = "" if row.model == before else names[row.model]
        before = row.model
        values = [SheetCell((_short_text(c, row.entries[c.id]),)) for c in table.columns]
        rows.append((SheetCell((model,), "label"), SheetCell((_label(row),)), *values))
    headers = (("model",), ("quantization",), *_short_headers(table.columns, layout))
    return Sheet("", headers, (False,) * len(headers), (Section("", tuple(rows)),))


def _short_headers(columns: tuple[Column, ...], layout: Layout) -> tuple[tuple[str, ...], ...]:
    """Protocols go below the table; they are in the header only where one metric has several."""
    names = [c.name for c in columns]
    out = []
    for i, column in enumerate(columns):
        title = f"{layout.heading} {column.title}" if i == 0 else column.title
        several = names.count(column.name) > 1
        first = f"[first {column.limit}]" if column.limit and several else ""
        more = (column.protocol, column.where, first) if several else (column.where,)
        out.append((title, *(line for line in more if line)))
    return tuple(out)


def _short_text(column: Column, entry: Entry) -> str:
    if entry.value is None:
        return entry.status + marks(entry.notes)
    if column.unit == "share":
        return f"{100 * entry.value:.1f}%" + marks(entry.notes)
    size = entry.value / GIB
    return (f"{size:.0f} G" if size >= 5 else f"{size:.2g} G") + marks(entry.notes)
