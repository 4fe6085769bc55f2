"""The table for a terminal or a pipe. If it is wider than the terminal, its columns are split into
several blocks, one below the other: a number is never cut or folded. Colours (rich) only where asked
for."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from qeval.report.format import marks
from qeval.report.sheet import Sheet, SheetCell, sheet
from qeval.report.table import Table

Span = tuple[str, str]
"""Text and its style."""

_GAP = 3
_PROTOCOL_WIDTH = 16  # longer protocol ids are folded in headers where the column is narrower
_STYLES = {
    "title": "bold",
    "header": "bold",
    "label": "bold",
    "better": "green",
    "better-slight": "dim green",
    "better-much": "bold green",
    "worse": "red",
    "worse-slight": "dim red",
    "worse-much": "bold red",
    "bad": "yellow",
    "small": "dim",
}


def text(table: Table, *, width: int | None = None, color: bool = False) -> str:
    """Args: width: columns of the terminal; None never breaks a line. color: with ANSI styles."""
    lines = list(_lines(table, width))
    return _ansi(lines) if color else "".join(_plain(line) + "\n" for line in lines)


def _plain(line: Sequence[Span]) -> str:
    return "".join(part for part, _ in line).rstrip()


def _ansi(lines: Sequence[Sequence[Span]]) -> str:
    from io import StringIO

    from rich.console import Console
    from rich.text import Text

    out = StringIO()
    console = Console(file=out, force_terminal=True, highlight=False, width=10_000)
    for line in lines:
        parts = [(part, _STYLES.get(style, "")) for part, style in line]
        console.print(Text.assemble(*parts), soft_wrap=True)
    return out.getvalue()


def _lines(table: Table, width: int | None) -> Iterator[list[Span]]:
    g = sheet(table)
    if g.title:
        yield [(g.title, "title")]
        yield []
    headers, widths = _fitted(g)
    fixed = _label_columns(g)
    for i, block in enumerate(_blocks(widths, fixed, width)):
        if i:
            yield []
        yield from _block(g, headers, widths, block)
    yield from _small_print(table, width)


def _label_columns(g: Sheet) -> int:
    """How many columns at the left name the row: they are repeated in every block."""
    names = [lines[0] for lines in g.headers[:2]]
    return 2 if names[1:] == ["dtype"] or names[:1] == ["model"] else 1


def _fitted(g: Sheet) -> tuple[list[list[str]], list[int]]:
    """Headers folded to their columns, and the width of each column."""
    headers, widths = [], []
    for i, lines in enumerate(g.headers):
        cells = [row[i] for section in g.sections for row in section.rows]
        body = max((len(line) for cell in cells for line in cell.lines), default=0)
        limit = max(body, _PROTOCOL_WIDTH, len(lines[0]))
        folded = [part for line in lines for part in _fold(line, limit)]
        headers.append(folded)
        widths.append(max(body, *(len(part) for part in folded)))
    return headers, widths


def _fold(line: str, width: int) -> list[str]:
    """Break after ``/``, ``,`` or a space where a line is too long."""
    out = [""]
    for part in re.findall(r"[^/, ]*[/, ]?", line):
        if out[-1] and len(out[-1] + part.rstrip()) > width:
            out.append("")
        out[-1] += part
    return [part.rstrip() for part in out]


def _blocks(widths: Sequence[int], fixed: int, width: int | None) -> list[list[int]]:
    """Column numbers of each block: the label columns, then as many others as the width takes."""
    labels = list(range(fixed))
    blocks = [labels.copy()]
    for i in range(fixed, len(widths)):
        wanted = sum(widths[j] + _GAP for j in blocks[-1]) + widths[i]
        if width is not None and wanted > width and len(blocks[-1]) > fixed:
            blocks.append(labels.copy())
        blocks[-1].append(i)
    return blocks


def _block(
    g: Sheet, headers: list[list[str]], widths: list[int], block: list[int]
) -> Iterator[list[Span]]:
    head = [SheetCell(tuple(headers[i]), "header") for i in block]
    yield from _row(g, head, widths, block)
    total = sum(widths[i] for i in block) + _GAP * (len(block) - 1)
    yield [("─" * total, "small")]
    for n, section in enumerate(g.sections):
        if section.heading:
            if n:
                yield []
            yield [(section.heading, "title")]
        for row in section.rows:
            yield from _row(g, [row[i] for i in block], widths, block)


def _row(
    g: Sheet, cells: Sequence[SheetCell], widths: list[int], block: list[int]
) -> Iterator[list[Span]]:
    for parts in zip_longest(*(cell.lines for cell in cells), fillvalue=""):
        line: list[Span] = []
        for part, cell, i in zip(parts, cells, block, strict=True):
            padded = part.rjust(widths[i]) if g.right[i] else part.ljust(widths[i])
            line += [(" " * _GAP, ""), (padded, cell.style)]
        yield line[1:]


def _small_print(table: Table, width: int | None) -> Iterator[list[Span]]:
    notes = [f"{marks((i,)).strip()} {note}" for i, note in enumerate(table.footnotes, 1)]
    for group in (notes, table.legend):
        if group:
            yield []
        for line in group:
            wrapped = textwrap.wrap(line, width, subsequent_indent="  ") if width else [line]
            yield from ([(part, "small")] for part in wrapped)
