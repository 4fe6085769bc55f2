"""Heat maps of layers: what each one lost by its quantization, how much noise rounding makes in it, and
how far its outliers stand out.

Losses and shares of outliers are in the artifact's own file, in the cache that built it; noise and
outlying channels in the statistics that the task `tensor_stats` leaves beside its record.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qeval.core.artifact import LayerReport
from qeval.core.errors import DataError
from qeval.core.record import Record
from qeval.report.draft import Draft
from qeval.report.row_records import names
from qeval.tensor_stats.rows import COLUMNS, Statistics, TensorRow, read, value

_PLACE = re.compile(
    r"(?:^|\.)(\d+)\.(.+?)(?:\.weight)?$"
)  # model.layers.3.mlp.up_proj, blk.3.ffn_up.weight


@dataclass(frozen=True)
class HeatMap:
    """``bands``: tensors of a layer, with the statistic in each layer; None where it has none.
    ``worse``: 1 where more is worse, -1 where less is. ``logarithmic``: its colours."""

    model: str
    row: str
    what: str  # "loss of the outputs", "SQNR of the weights, dB", ...
    bands: tuple[tuple[str, tuple[float | None, ...]], ...]
    worse: int
    logarithmic: bool


_LOSSES = {
    "relative_loss": "loss: error of the layer's outputs over their power",
    "loss": "loss: of the layer's outputs, as the method has it",
    "mse": "loss: mean squared error of the weights",
}
_SHARES = {"outlier_share": "outliers: share of weights kept in 16 bits"}
_GROUPS = {"weights": ("weight",), "inputs": ("input",), "KV cache": ("key", "value")}
_STATISTICS = {
    "sqnr": "noise: SQNR of the {}, dB",
    "outlier": "outliers: largest channel of the {} over the median one",
    "kurtosis": "outliers: kurtosis of the {} (normal: 3)",
}


def heat_maps(draft: Draft) -> list[HeatMap]:
    """Row by row; of a row losses first."""
    found = []
    for (model, label), row in zip(names(draft.rows), draft.rows, strict=True):
        if row.floor:
            continue
        found += list(_losses(model, label, _reports(row.artifact)))
        for record in row.evals:
            if (statistics := _statistics(record)) is not None:
                found += list(_tensors(model, label, statistics))
    return found


def _reports(artifact: Mapping[str, object]) -> tuple[LayerReport, ...]:
    """Of the artifact's own file; nothing where the cache no longer has it."""
    path = Path(str(artifact.get("path") or ""))
    for folder in (path, path.parent):
        try:
            made = json.loads((folder / "artifact.json").read_text(encoding="utf-8"))["artifact"]
            return tuple(LayerReport(**layer) for layer in made["layers"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return ()


def _losses(model: str, row: str, reports: Sequence[LayerReport]) -> Iterator[HeatMap]:
    """Of the losses the first that the method knows."""
    known = [name for name in _LOSSES if any(getattr(r, name) is not None for r in reports)]
    for name in (*known[:1], *(n for n in _SHARES if any(getattr(r, n) is not None for r in reports))):
        placed = [(place, getattr(r, name)) for r in reports if (place := _place(r.name))]
        cells = [(*place, x) for place, x in placed if x is not None]
        if cells:
            what = {**_LOSSES, **_SHARES}[name]
            yield HeatMap(model, row, what, _bands(cells, worse=1), 1, name in _LOSSES)


def _place(name: str) -> tuple[int, str] | None:
    found = _PLACE.search(name)
    return (int(found[1]), found[2]) if found else None


def _statistics(record: Record) -> Statistics | None:
    named = record.files.get("layers")
    if record.status != "ok" or not named:
        return None
    try:
        return read(Path(record.folder) / named)
    except DataError:
        return None


def _tensors(model: str, row: str, found: Statistics) -> Iterator[HeatMap]:
    for column, what in _STATISTICS.items():
        for group, kinds in _GROUPS.items():
            own = [r for r in found.rows if r.kind in kinds and r.layer is not None]
            cells = [(r, x) for r in own if (x := value(r, column)) is not None]
            if cells:
                bands = _bands(((_layer(r), r.name or r.kind, x) for r, x in cells), COLUMNS[column])
                yield HeatMap(model, row, what.format(group), bands, COLUMNS[column], column != "sqnr")


def _layer(row: TensorRow) -> int:
    assert row.layer is not None
    return row.layer


def _bands(
    cells: Iterable[tuple[int, str, float]], worse: int
) -> tuple[tuple[str, tuple[float | None, ...]], ...]:
    """Numbered modules inside a layer (experts) share a band: the worst of them is shown."""
    found: dict[str, dict[int, float]] = {}
    for layer, tensor, x in cells:
        own = found.setdefault(re.sub(r"\.\d+(?=\.|$)", ".*", tensor), {})
        own[layer] = x if layer not in own else worse * max(worse * own[layer], worse * x)
    n = 1 + max((layer for own in found.values() for layer in own), default=-1)
    return tuple((name, tuple(_digits(own.get(i)) for i in range(n))) for name, own in found.items())


def _digits(x: float | None) -> float | None:
    return None if x is None else float(f"{x:.4g}")
