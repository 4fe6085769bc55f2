"""The one table that all renderers print: columns, rows of entries, footnotes, legend."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from qeval.core.record import Better
from qeval.report.compare import Difference
from qeval.report.places import Place

ColumnKind = Literal["metric", "memory", "time", "task"]


@dataclass(frozen=True)
class Column:
    """One kind of number under one protocol; ``id`` is unique in a table."""

    name: str  # "ppl", "pass@1", "vram_process"
    title: str  # "PPL", "VRAM"
    unit: str = ""  # as printed: "%", "GiB", "tok/s"
    protocol: str = ""
    limit: int | None = None  # only the first units were measured
    kind: ColumnKind = "metric"
    place: Place | None = None  # where it was measured, if that decides the number
    where: str = ""  # the same in few words, if the table has several places
    group: str = ""  # what the legend calls it and its like
    better: Better = "none"
    from_baseline: bool = False  # it is a distance from the baseline itself
    cost: bool = (
        False  # of a run on a machine: not shown for simulated weights, which cost what floats do
    )

    @cached_property
    def id(self) -> str:
        first = f"[first {self.limit}]" if self.limit else ""
        where = f"[{self.where}]" if self.where else ""
        return " ".join(part for part in (self.name, self.protocol, first, where) if part)


@dataclass(frozen=True)
class Entry:
    """What is shown where a row and a column meet: a value, or a ``status`` that says why there is
    none."""

    value: float | None = None
    half: float | None = None  # symmetric 95% interval: value +- half
    low: float | None = None
    high: float | None = None
    difference: Difference | None = None
    status: str = ""  # "failed", "broken (100% not finite)", "–", "…"; empty with a value
    accounted: bool = False  # computed from what would be stored, not measured
    at_floor: bool = False  # no larger than what the same model differs by from itself
    notes: tuple[int, ...] = ()  # footnotes, counted from 1


@dataclass(frozen=True)
class TableRow:
    model: str
    dtype: str  # "" where the model is a .gguf file, which has types of its own
    quantization: str
    engine: str
    baseline: bool
    simulated: bool  # its weights are floats that carry the rounding
    entries: dict[str, Entry]  # by Column.id
    notes: tuple[int, ...] = ()
    low_bits: bool = False  # its activations or KV cache are
    twin: bool = False  # the baseline's weights in another engine: a floor for that engine's rows
    floor: str = ""  # "rounding", "repetition", "engine": the baseline again, to see what means nothing

    @property
    def marked(self) -> bool:
        return self.simulated or self.low_bits


@dataclass(frozen=True)
class Table:
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]  # rows of one model stand together
    footnotes: tuple[str, ...] = ()
    legend: tuple[str, ...] = ()
    layout: str = "full"  # or a short one's name (tasks/layouts.py)

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.model for row in self.rows))

    @property
    def dtypes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.dtype for row in self.rows if row.dtype))

    def dtypes_of(self, model: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.dtype for row in self.rows if row.dtype and row.model == model))
