"""The table as an HTML fragment, for notebooks."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from qeval.report.format import marks
from qeval.report.sheet import SheetCell, sheet
from qeval.report.table import Table

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
    g = sheet(table)
    lines = [f'<div class="qeval"><style>{_STYLE}</style>', "<table>"]
    lines += [f"<caption>{escape(g.title)}</caption>"] if g.title else []
    head = (_cell("th", SheetCell(h), r) for h, r in zip(g.headers, g.right, strict=True))
    lines.append(f"<thead><tr>{''.join(head)}</tr></thead>")
    for section in g.sections:
        lines.append("<tbody>")
        if section.heading:
            lines.append(f'<tr><th colspan="{len(g.headers)}">{escape(section.heading)}</th></tr>')
        for first, *cells in section.rows:
            body = (_cell("td", cell, r) for cell, r in zip(cells, g.right[1:], strict=True))
            lines.append(f"<tr>{_cell('th', first, False)}{''.join(body)}</tr>")
        lines.append("</tbody>")
    lines.append("</table>")
    notes = [f"{marks((i,)).strip()} {note}" for i, note in enumerate(table.footnotes, 1)]
    lines += [f'<p class="small">{_lines(part)}</p>' for part in (notes, table.legend) if part]
    return "\n".join([*lines, "</div>"]) + "\n"


def _cell(tag: str, cell: SheetCell, right: bool) -> str:
    style = " ".join(cell.style.split("-")) if cell.style.startswith(_COLOURED) else ""
    classes = " ".join(filter(None, ("right" if right else "", style)))
    named = f' class="{classes}"' if classes else ""
    return f"<{tag}{named}>{_lines(cell.lines)}</{tag}>"


def _lines(texts: Iterable[str]) -> str:
    return "<br>".join(escape(text) for text in texts)
