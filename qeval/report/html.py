"""The table as an HTML fragment, for notebooks and the page of `qeval report`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from qeval.report.format import marks
from qeval.report.sheet import SheetCell, sheet
from qeval.report.table import Table, TableRow

# Colours that can be read on white and on black.
_STYLE = (
    ".qeval th, .qeval td { text-align: left; vertical-align: top; padding: 0.2em 0.8em; white-space: "
    "nowrap; } .qeval .right { text-align: right; } .qeval .better { color: #2a8a3e; } .qeval .worse { "
    "color: #d23c3c; } .qeval .bad { color: #a87800; } .qeval .slight { opacity: 0.7; } .qeval .much { "
    "font-weight: bold; } .qeval .small { font-size: 85%; opacity: 0.8; }"
)

_COLOURED = ("better", "worse", "bad")


def html(table: Table) -> str:
    """A ``<div>`` with a style of its own, which needs nothing from outside; ends in a newline."""
    lines = [f'<div class="qeval"><style>{_STYLE}</style>', table_element(table), small_print(table)]
    return "\n".join([*filter(None, lines), "</div>"]) + "\n"


def table_element(table: Table) -> str:
    """The ``<table>`` alone. A column's header has its id as ``data-id``, a cell with a number that
    number in raw units as ``data-value``."""
    g = sheet(table)
    lines = ["<table>"]
    lines += [f"<caption>{escape(g.title)}</caption>"] if g.title else []
    named = [""] * (len(g.headers) - len(table.columns)) + [column.id for column in table.columns]
    head = (
        _cell("th", SheetCell(h), r, id=name)
        for h, r, name in zip(g.headers, g.right, named, strict=True)
    )
    lines.append(f"<thead><tr>{''.join(head)}</tr></thead>")
    rows = iter(_in_order(table) if table.layout == "full" else table.rows)
    for section in g.sections:
        lines.append("<tbody>")
        if section.heading:
            lines.append(f'<tr><th colspan="{len(g.headers)}">{escape(section.heading)}</th></tr>')
        for first, *cells in section.rows:
            values = _values(table, next(rows), len(cells))
            body = (
                _cell("td", cell, r, value=value)
                for cell, r, value in zip(cells, g.right[1:], values, strict=True)
            )
            lines.append(f"<tr>{_cell('th', first, False)}{''.join(body)}</tr>")
        lines.append("</tbody>")
    return "\n".join([*lines, "</table>"])


def small_print(table: Table) -> str:
    """Footnotes and legend, a ``<p>`` each; nothing where there are none."""
    notes = [f"{marks((i,)).strip()} {note}" for i, note in enumerate(table.footnotes, 1)]
    parts = [part for part in (notes, table.legend) if part]
    return "\n".join(f'<p class="small">{_lines(part)}</p>' for part in parts)


def _in_order(table: Table) -> list[TableRow]:
    """As the sheet has them: model by model."""
    return [row for model in table.models for row in table.rows if row.model == model]


def _values(table: Table, row: TableRow, n: int) -> Sequence[float | None]:
    """Of the ``n`` cells behind a row's name: first those of no column."""
    own = [row.entries[column.id].value for column in table.columns]
    return [*[None] * (n - len(own)), *own]


def _cell(tag: str, cell: SheetCell, right: bool, id: str = "", value: float | None = None) -> str:
    style = " ".join(cell.style.split("-")) if cell.style.startswith(_COLOURED) else ""
    classes = " ".join(filter(None, ("right" if right else "", style)))
    named = f' class="{classes}"' if classes else ""
    named += f' data-id="{escape(id)}"' if id else ""
    named += "" if value is None else f' data-value="{value!r}"'
    return f"<{tag}{named}>{_lines(cell.lines)}</{tag}>"


def _lines(texts: Iterable[str]) -> str:
    return "<br>".join(escape(text) for text in texts)
