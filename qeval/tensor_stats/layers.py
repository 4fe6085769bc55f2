"""The statistics of one model's tensors, or of two side by side, as text, markdown, csv or json.

csv and json carry full precision; json is strict. Text and markdown show three digits, with a legend.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qeval.core.console import aligned
from qeval.core.record import finite
from qeval.tensor_stats.rows import COLUMNS, Statistics, TensorRow, grids, value

_TITLES = {
    "absmax": "AbsMax",
    "std": "std",
    "kurtosis": "kurtosis",
    "outlier": "outlier",
    "sqnr": "SQNR dB",
}
_CSV = ("absmax", "mean", "std", "kurtosis", "outlier", "channel", "sqnr_db", "count", "nonfinite")


@dataclass(frozen=True)
class Line:
    """One tensor: a row of each model, None where a model has no such tensor."""

    rows: tuple[TensorRow | None, ...]

    @property
    def any(self) -> TensorRow:
        return next(row for row in self.rows if row is not None)

    def change(self, column: str) -> float | None:
        """From the first model to the second: a share, or for SQNR a difference in dB."""
        if len(self.rows) < 2 or self.rows[0] is None or self.rows[1] is None:
            return None
        before, after = (value(row, column) for row in self.rows if row is not None)
        if before is None or after is None:
            return None
        if column == "sqnr":
            return after - before
        return (after - before) / before if before else None


def lines(
    found: Sequence[Statistics],
    *,
    kinds: Sequence[str] = (),
    sort: str | None = None,
    top: int | None = None,
) -> list[Line]:
    """The tensors in the first model's order, then those of the second alone.

    ``sort``: a key of COLUMNS: the worst first; of two models what changed most first. Tensors without
    a value come last.
    """
    tables = [{(r.kind, r.layer, r.name): r for r in one.rows} for one in found]
    keys = dict.fromkeys(key for table in tables for key in table)
    joined = [Line(tuple(table.get(key) for table in tables)) for key in keys]
    if kinds:
        joined = [line for line in joined if line.any.kind in kinds]
    if sort is not None:
        joined.sort(key=lambda line: _rank(line, sort))
    return joined[:top]


def _rank(line: Line, column: str) -> tuple[bool, float]:
    if len(line.rows) > 1:
        found = line.change(column)
        return found is None, -abs(found or 0.0)
    found = value(line.any, column)
    return found is None, -COLUMNS[column] * (found or 0.0)


def render(
    fmt: str, found: Sequence[Statistics], shown: Sequence[Line], sort: str | None = None
) -> str:
    """One string that ends in a newline. ``fmt``: text, markdown, csv or json."""
    if fmt == "json":
        return _json(found, shown)
    if fmt == "csv":
        return _csv(found, shown)
    changes = (sort or "absmax") if len(found) > 1 else None
    head = _head(changes)
    body = [_cells(line, changes) for line in shown]
    titles, legend = [_title(one) for one in found], _legend(found, changes)
    form = _markdown if fmt == "markdown" else _text
    return form(" → ".join(titles), head, body, legend)


def _title(one: Statistics) -> str:
    a = one.about
    return (
        f"{a['model']}, {a['dtype']}: {a['windows']} windows of {a['seq_len']} tokens of {a['dataset']}"
    )


def _head(changes: str | None) -> list[str]:
    *names, noise = _TITLES.values()
    if changes is None:
        return ["layer", "tensor", *names, "channel", noise]
    return ["layer", "tensor", *names, noise, f"change of {_TITLES[changes].removesuffix(' dB')}"]


def _cells(line: Line, changes: str | None) -> list[str]:
    row = line.any
    layer = "–" if row.layer is None else str(row.layer)
    *numbers, noise = (
        " → ".join(_number(value(r, c) if r else None, c) for r in line.rows) for c in _TITLES
    )
    name = [layer, f"{row.kind} {row.name}".strip()]
    if changes is None:
        return [*name, *numbers, "–" if row.channel is None else str(row.channel), noise]
    return [*name, *numbers, noise, _change(line, changes)]


def _number(x: float | None, column: str) -> str:
    if x is None:
        return "–"
    if column == "sqnr":
        return f"{x:.1f}"
    size = abs(x)
    if size >= 1e6 or 0 < size < 1e-3:
        return f"{x:.2e}"
    return f"{x:.0f}" if size >= 1000 else f"{x:#.3g}".rstrip(".") if x else "0"


def _change(line: Line, column: str) -> str:
    found = line.change(column)
    if found is None:
        return "–"
    return f"{found:+.1f} dB" if column == "sqnr" else f"{found:+.1%}"


def _legend(found: Sequence[Statistics], changes: str | None) -> list[str]:
    how = ", ".join(f"{what} to {grid}" for what, grid in grids(found[-1].about["bits"]).items())
    out = [
        "input: what the named linears read; key, value: as the cache gets them",
        "kurtosis: mean of ((x - mean) / std)^4; a normal distribution has 3",
        "outlier: AbsMax of the largest channel over that of the median channel",
        "SQNR: power of a channel over that of its rounding error, mean over channels; less hurts more",
        f"  {how}",
    ]
    if not changes:
        out.insert(3, "channel: which one is the largest")
    lost = [r.where for one in found for r in one.rows if r.nonfinite]
    if lost:
        out.append(f"values that are not finite are left out ({len(lost)} tensors, first {lost[0]})")
    return out


def _text(title: str, head: list[str], body: list[list[str]], legend: list[str]) -> str:
    top, *lines = aligned([head, *body], right={i for i in range(len(head)) if i != 1})
    return "\n".join([title, "", top, "─" * len(top), *lines, "", *legend]) + "\n"


def _markdown(title: str, head: list[str], body: list[list[str]], legend: list[str]) -> str:
    rule = "|" + "|".join("---" if i == 1 else "---:" for i in range(len(head))) + "|"
    rows = ["| " + " | ".join(cells) + " |" for cells in (head, *body)]
    small = [f"- {line.strip()}" for line in legend]
    return "\n".join([f"**{title}**", "", rows[0], rule, *rows[1:], "", *small]) + "\n"


def _csv(found: Sequence[Statistics], shown: Sequence[Line]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    marks = [""] if len(found) == 1 else [f"_{i}" for i in range(1, len(found) + 1)]
    writer.writerow(["layer", "kind", "name", *(f"{n}{mark}" for mark in marks for n in _CSV)])
    for line in shown:
        row = line.any
        numbers = [getattr(r, name) if r else None for r in line.rows for name in _CSV]
        writer.writerow([row.layer, row.kind, row.name, *numbers])
    return out.getvalue()


def _json(found: Sequence[Statistics], shown: Sequence[Line]) -> str:
    """One model: its rows. Two: a list of two for each tensor, null where a model lacks it."""
    rows: list[Any] = [[asdict(r) if r else None for r in line.rows] for line in shown]
    if len(found) == 1:
        data: dict[str, object] = {"about": found[0].about, "rows": [pair[0] for pair in rows]}
    else:
        data = {"about": [one.about for one in found], "rows": rows}
    return json.dumps(finite(data), allow_nan=False, ensure_ascii=False, indent=1) + "\n"
