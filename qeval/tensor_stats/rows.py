"""The statistics of one tensor of a model, and the file that keeps them (torch-free: the parent reads
it).

``layers.jsonl``: a first line that says what was measured and how, then a line for each tensor, in the
model's order. Strict JSON: what is not finite or cannot be computed is null.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from qeval.core.errors import DataError
from qeval.core.files import write_atomic
from qeval.core.record import finite

Kind = Literal["weight", "input", "key", "value"]
KINDS: tuple[Kind, ...] = ("weight", "input", "key", "value")
FORMAT = "qeval tensor_stats 1"
TOP_CHANNELS = 8


@dataclass(frozen=True)
class TensorRow:
    """One tensor. Channels are the inputs of a linear, or the features of all heads of K or V."""

    kind: Kind
    layer: int | None  # index of the decoder block; None outside them
    name: str  # inside the block; of an input all linears that read it: "mlp.gate_proj,up_proj"
    modules: tuple[str, ...]  # full names
    count: int  # finite values seen
    nonfinite: int  # values left out
    absmax: float | None
    mean: float | None
    std: float | None  # of the population
    kurtosis: float | None  # Pearson's: normal = 3
    outlier: float | None  # the largest channel AbsMax over the median one
    channel: int | None  # which channel is the largest
    channels: int
    top_channels: tuple[tuple[int, float], ...]  # (channel, AbsMax), the largest first
    sqnr_db: float | None  # moments.Noise.db; None: nothing to round, or no noise

    @property
    def where(self) -> str:
        """For people: ``2 weight mlp.down_proj``."""
        parts = (self.layer, self.kind, self.name)
        return " ".join(str(part) for part in parts if part not in (None, ""))


@dataclass(frozen=True)
class Statistics:
    """``about``: model, dtype, dataset, seq_len, windows, bits (``TensorStatsOptions``)."""

    about: dict[str, Any]
    rows: tuple[TensorRow, ...]


def write(path: Path, found: Statistics) -> None:
    """Raises StoreError where the folder cannot be written."""
    lines = [{"format": FORMAT, **found.about}, *(asdict(row) for row in found.rows)]
    write_atomic(path, "".join(json.dumps(finite(line), allow_nan=False) + "\n" for line in lines))


def read(path: Path) -> Statistics:
    """Raises DataError where the file is not one of these."""
    try:
        head, *lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        if head.pop("format") != FORMAT:
            raise ValueError
        return Statistics(head, tuple(_row(line) for line in lines))
    except OSError as err:
        raise DataError(f"{path}: cannot be read ({err.strerror}): give a layers.jsonl") from err
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise DataError(
            f"{path}: not the statistics of a model: give a layers.jsonl of the task tensor_stats, or "
            "a file of `qeval stats --save`"
        ) from err


def _row(data: Mapping[str, Any]) -> TensorRow:
    pairs = tuple((int(i), float(x)) for i, x in data["top_channels"])
    return TensorRow(**{**data, "modules": tuple(data["modules"]), "top_channels": pairs})


COLUMNS = {"absmax": 1, "std": 1, "kurtosis": 1, "outlier": 1, "sqnr": -1}
"""What rows are sorted and coloured by; 1: more is worse, -1: less is worse."""


def value(row: TensorRow, column: str) -> float | None:
    found: float | None = getattr(row, "sqnr_db" if column == "sqnr" else column)
    return found


def worst(rows: Iterable[TensorRow], column: str) -> list[TensorRow]:
    """The rows that have a value, the worst first; equal ones in the model's order."""
    known = [(v, row) for row in rows if (v := value(row, column)) is not None]
    return [row for _, row in sorted(known, key=lambda pair: -COLUMNS[column] * pair[0])]


def grids(bits: Mapping[str, int]) -> dict[str, str]:
    """In words, what SQNR is measured on (``about["bits"]``)."""
    group = bits["group_size"]
    return {
        "weights": f"{bits['weights']} bits per "
        + ("output channel" if group == -1 else f"group of {group} inputs"),
        "inputs": f"{bits['activations']} bits per token",
        "KV cache": f"{bits['kv_cache']} bits per token and head",
    }
