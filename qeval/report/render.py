"""One table, five forms: text, markdown, csv, json, html. No number is ever cut to fit.

csv and json carry the raw numbers (shares, bytes, seconds) in full precision; json is strict.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from qeval.core.errors import UsageError, did_you_mean
from qeval.core.record import finite
from qeval.report.format import marks
from qeval.report.html import html
from qeval.report.sheet import SheetCell, sheet
from qeval.report.table import Column, Entry, Table, TableRow
from qeval.report.text import text

FORMATS = ("text", "markdown", "csv", "json", "html")
_PARTS = (
    "±",
    "low",
    "high",
    "difference",
    "difference low",
    "difference high",
    "difference kind",
    "significant",
    "p",
    "p Holm",
    "equivalent",
    "detectable",
    "status",
)


def render(table: Table, fmt: str, *, width: int | None = None, color: bool = False) -> str:
    """The table as one string that ends in a newline.

    Args:
        fmt: one of FORMATS.
        width: columns of the terminal, for text; None where there is none.
        color: ANSI styles, for text.

    Raises:
        UsageError: an unknown format.
    """
    if fmt == "text":
        return text(table, width=width, color=color)
    forms = {"markdown": markdown, "csv": csv_text, "json": json_text, "html": html}
    if fmt not in forms:
        raise UsageError(f"unknown format {fmt!r}{did_you_mean(fmt, FORMATS)}")
    return forms[fmt](table)


def markdown(table: Table) -> str:
    """A GitHub pipe table, then footnotes and legend."""
    g = sheet(table)
    lines = [f"**{escaped(g.title)}**", ""] if g.title else []
    lines.append(_pipes(SheetCell(header) for header in g.headers))
    lines.append("|" + "|".join("---:" if right else "---" for right in g.right) + "|")
    for section in g.sections:
        if section.heading:
            blanks = [SheetCell(()) for _ in g.headers[1:]]
            lines.append(_pipes([SheetCell((f"**{section.heading}**",)), *blanks]))
        lines += [_pipes(row) for row in section.rows]
    notes = [f"{marks((i,)).strip()} {note}" for i, note in enumerate(table.footnotes, 1)]
    small_print = [f"- {escaped(line)}" for line in (*notes, *table.legend)]
    lines += ["", *small_print] if small_print else []
    return "\n".join(lines) + "\n"


def _pipes(cells: Iterable[SheetCell]) -> str:
    return "| " + " | ".join("<br>".join(escaped(line) for line in cell.lines) for cell in cells) + " |"


def escaped(line: str) -> str:
    for mark in ("\\", "|", "<"):
        line = line.replace(mark, "\\" + mark)
    return line


def csv_text(table: Table) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ["model", "dtype", "quantization", "engine", "baseline", "simulated"]
    writer.writerow([*head, *(name for column in table.columns for name in _csv_names(column))])
    for row in table.rows:
        writer.writerow([*_csv_head(row), *_csv_values(table, row)])
    return out.getvalue()


def _csv_names(column: Column) -> list[str]:
    name = f"{column.id} ({column.unit})" if column.unit else column.id
    parts = () if column.kind in ("memory", "time") else _PARTS
    conditions = ("conditions",) if column.place else ()
    return [name, *(f"{column.id} {part}" for part in (*parts, *conditions))]


def _csv_head(row: TableRow) -> list[object]:
    names = (row.model, row.dtype, row.quantization, row.engine)
    return [*names, int(row.baseline), int(row.marked)]


def _csv_values(table: Table, row: TableRow) -> Iterator[object]:
    for column in table.columns:
        entry = row.entries[column.id]
        yield entry.value
        if column.kind not in ("memory", "time"):
            yield from _csv_details(entry)
        if column.place:
            yield column.place.words() if entry.value is not None else None


def _csv_details(entry: Entry) -> Iterator[object]:
    yield from (entry.half, entry.low, entry.high)
    change = entry.difference
    shown = (change.value, change.low, change.high, change.kind) if change else (None,) * 4
    yield from shown
    tested = change.significant if change else None
    yield None if tested is None else int(tested)
    yield from (change.p, change.adjusted) if change else (None, None)
    same = change.equivalent if change else None
    yield None if same is None else int(same)
    yield change.detectable if change else None
    yield entry.status or "ok"


def json_text(table: Table) -> str:
    data = {
        "schema_version": 1,
        "layout": table.layout,
        "columns": [{"id": column.id, **asdict(column)} for column in table.columns],
        "rows": [asdict(row) for row in table.rows],
        "footnotes": table.footnotes,
        "legend": table.legend,
    }
    return json.dumps(finite(data), allow_nan=False, ensure_ascii=False, indent=1) + "\n"
