"""The table as LaTeX, for ``\\input``: booktabs rules, nothing else beyond the kernel."""

from __future__ import annotations

from collections.abc import Iterable

from qeval.report.format import marks
from qeval.report.sheet import SheetCell, sheet
from qeval.report.table import Table

_SPECIAL = {
    "\\": r"\textbackslash{}",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "†": r"$\dagger$",
    "–": "--",
    "…": r"\dots{}",
    "·": r"$\cdot$",
    **{mark: f"\\textsuperscript{{{i}}}" for i, mark in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
}


def latex(table: Table) -> str:
    """A ``table`` environment with caption, notes and legend; needs ``\\usepackage{booktabs}``. Ends
    in a newline."""
    g = sheet(table)
    columns = "".join("r" if right else "l" for right in g.right)
    lines = ["% needs \\usepackage{booktabs}", "\\begin{table}", "\\centering", "\\small"]
    lines += [f"\\caption{{{escaped(g.title)}}}"] if g.title else []
    lines += [f"\\begin{{tabular}}{{{columns}}}", "\\toprule"]
    lines += _rows([SheetCell(header) for header in g.headers])
    for section in g.sections:
        lines.append("\\midrule")
        if section.heading:
            heading = f"\\textbf{{{escaped(section.heading)}}}"
            lines.append(f"\\multicolumn{{{len(columns)}}}{{l}}{{{heading}}} \\\\")
        for row in section.rows:
            lines += _rows(row)
    lines += ["\\bottomrule", "\\end{tabular}"]
    notes = [f"{marks((i,)).strip()} {note}" for i, note in enumerate(table.footnotes, 1)]
    if small := [*notes, *table.legend]:
        lines += ["", "\\begin{flushleft}\\footnotesize"]
        lines += [f"{escaped(line)}\\\\" for line in small[:-1]] + [escaped(small[-1])]
        lines.append("\\end{flushleft}")
    return "\n".join([*lines, "\\end{table}"]) + "\n"


def _rows(cells: Iterable[SheetCell]) -> list[str]:
    """A line of LaTeX for each line of the cells."""
    cells = list(cells)
    height = max((len(cell.lines) for cell in cells), default=0)
    lines = []
    for n in range(height):
        texts = [escaped(cell.lines[n]) if n < len(cell.lines) else "" for cell in cells]
        lines.append(" & ".join(texts) + r" \\")
    return lines


def escaped(text: str) -> str:
    return "".join(_SPECIAL.get(mark, mark) for mark in text)
