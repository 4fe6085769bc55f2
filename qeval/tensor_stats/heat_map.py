"""A picture of one model's tensors: decoder layers from left to right, one band for each tensor of a
layer, coloured by one of the statistics. The brighter, the more it hurts; the worst of each panel is
framed. Needs matplotlib.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qeval.core.errors import StoreError, UsageError
from qeval.core.files import disk_message
from qeval.tensor_stats.rows import COLUMNS, Statistics, TensorRow, grids, value, worst

PANELS = {"weights": ("weight",), "inputs": ("input",), "KV cache": ("key", "value")}
_LABELS = {
    "absmax": "AbsMax",
    "std": "standard deviation",
    "kurtosis": "kurtosis (normal: 3)",
    "outlier": "largest / median channel AbsMax",
    "sqnr": "SQNR in dB",
}
_BAND, _COLUMN = 0.3, 0.22  # inches
_MISSING = "#d0d0d0"


def draw(path: Path, found: Statistics, column: str) -> None:
    """Write a png.

    Raises:
        UsageError: no tensor is in a decoder block.
        StoreError: the file cannot be written.
    """
    panels = {name: _bands(found.rows, kinds, column) for name, kinds in PANELS.items()}
    panels = {name: bands for name, bands in panels.items() if bands}
    layers = [row.layer for row in found.rows if row.layer is not None]
    if not panels:
        raise UsageError(f"--png: no tensor of {found.about['model']} is in a decoder layer")
    figure = _figure(panels, max(layers) + 1, column, found)
    try:
        figure.savefig(path, dpi=150)
    except OSError as err:
        raise StoreError(disk_message(path.parent, err)) from err


Bands = dict[str, dict[int, TensorRow]]
"""By the tensor's name in its layer: its row of each layer."""


def _bands(rows: Sequence[TensorRow], kinds: Sequence[str], column: str) -> Bands:
    """Numbered modules inside a layer (experts) share a band: the worst of them is shown."""
    bands: Bands = {}
    for row in rows:
        if row.layer is None or row.kind not in kinds:
            continue
        label = re.sub(r"\.\d+(?=\.|$)", ".*", row.name) or row.kind
        before = bands.setdefault(label, {}).get(row.layer)
        pair = [row] if before is None else [before, row]
        bands[label][row.layer] = next(iter(worst(pair, column)), row)
    return bands


def _figure(panels: dict[str, Bands], n_layers: int, column: str, found: Statistics) -> Any:
    from matplotlib.figure import Figure

    heights = [max(2, len(bands)) for bands in panels.values()]
    longest = max(len(label) for bands in panels.values() for label in bands)
    width = max(6.0, 0.085 * longest + 2.2 + _COLUMN * n_layers)
    figure = Figure((width, 1.5 + _BAND * sum(heights) + 0.45 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (name, bands) in zip(axes, panels.items(), strict=True):
        how = f": {grids(found.about['bits'])[name]}" if column == "sqnr" else ""
        _panel(figure, axis, name + how, bands, n_layers, column)
    axes[-1].set_xlabel("decoder layer")
    about = found.about
    text = f"{about['windows']} windows of {about['seq_len']} tokens of {about['dataset']}"
    figure.suptitle(
        f"{about['model']}, {about['dtype']}: {_LABELS[column]}\n{text}; framed: the worst",
        fontsize=11,
    )
    return figure


def _panel(figure: Any, axis: Any, name: str, bands: Bands, n_layers: int, column: str) -> None:
    from matplotlib.patches import Rectangle

    grid = [[_at(layers, i, column) for i in range(n_layers)] for layers in bands.values()]
    known = [x for line in grid for x in line if not math.isnan(x)]
    colours, norm = _colours(known, column)
    image = axis.imshow(grid, aspect="auto", cmap=colours, norm=norm, interpolation="nearest")
    axis.set_facecolor(_MISSING)
    axis.set_title(name, loc="left", fontsize=10)
    axis.set_yticks(range(len(bands)), list(bands), fontsize=8)
    step = 1 if n_layers <= 16 else 2 if n_layers <= 40 else 4
    axis.set_xticks(range(0, n_layers, step))
    axis.tick_params(axis="x", labelsize=8)
    bar = figure.colorbar(image, ax=axis, pad=0.01, aspect=4 * len(bands), extend="neither")
    bar.ax.tick_params(labelsize=8)
    if column == "sqnr":
        bar.ax.invert_yaxis()  # bright, the bad end, is up in every picture
    if known:
        y, x = _worst_cell(grid, column)
        frame = Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor="red", linewidth=1.5)
        axis.add_patch(frame)


def _at(layers: dict[int, TensorRow], index: int, column: str) -> float:
    found = value(layers[index], column) if index in layers else None
    return math.nan if found is None else found


def _worst_cell(grid: list[list[float]], column: str) -> tuple[int, int]:
    cells = [
        (x, (i, j)) for i, line in enumerate(grid) for j, x in enumerate(line) if not math.isnan(x)
    ]
    return max(cells, key=lambda cell: COLUMNS[column] * cell[0])[1]


def _colours(known: list[float], column: str) -> tuple[str, object]:
    """A colour-blind safe map, and its scale: dB are a logarithm already, the others get one."""
    from matplotlib.colors import LogNorm, Normalize

    if column == "sqnr":
        return "cividis_r", Normalize(min(known, default=0.0), max(known, default=1.0))
    positive = [x for x in known if x > 0]
    return "cividis", LogNorm(min(positive, default=1.0), max(positive, default=10.0))
