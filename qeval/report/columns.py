"""Which columns a table has: one for each metric, protocol and limit; memory; time; and their choice.

Two protocols never share a column, nor do a whole text and its first N windows. Raw units are kept
here (bytes, shares, seconds); format.py prints GiB and percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from qeval.errors import UsageError, did_you_mean
from qeval.record import Metric
from qeval.report.table import Column

COST_UNITS = frozenset({"tok/s", "s", "ms", "bytes", "MiB", "GiB"})
"""Units of what a run costs: not shown for simulated weights, which cost what the float model does."""

_TITLES = {
    "ppl": "PPL",
    "prefill_tok_s": "prefill",
    "decode_tok_s": "decode",
    "ttft_s": "first token",
    "step_ms": "step",
    "allocated_mib": "allocated",
    "sqnr_weight": "lowest SQNR of weights",
    "sqnr_input": "lowest SQNR of inputs",
    "sqnr_kv": "lowest SQNR of K, V",
    "kurtosis_weight": "largest kurtosis of weights",
    "kurtosis_input": "largest kurtosis of inputs",
}

BPW = Column("bpw", "bpw", "bits", kind="memory")
SIZE = Column("size", "weights", "bytes", kind="memory")
VRAM = Column("vram_process", "VRAM", "bytes", kind="memory")
RAM = Column("ram_peak", "RAM", "bytes", kind="memory")
RESERVED = Column("vram_reserved", "VRAM reserved", "bytes", kind="memory")
ALLOCATED = Column("vram_allocated", "VRAM allocated", "bytes", kind="memory")
WIDE = (
    BPW,
    Column("bpw_file", "bpw file", "bits", kind="memory"),
    Column("weights", "layers", "bytes", kind="memory"),
    Column("embeddings", "embeddings", "bytes", kind="memory"),
    Column("kv_cache", "KV cache", "bytes", kind="memory"),
    ALLOCATED,
    RESERVED,
    VRAM,
    RAM,
)
TIMES = (
    Column("build_s", "quantize", "s", kind="time"),
    Column("build_vram", "quantize VRAM", "bytes", kind="time"),
    Column("build_ram", "quantize RAM", "bytes", kind="time"),
    Column("wall_s", "evaluate", "s", kind="time"),
)


def metric_column(metric: Metric, limit: int | None) -> Column:
    """``limit`` is the cell's; it is shown only where it cut something off."""
    whole = limit is None or 0 < metric.n < limit or metric.unit in COST_UNITS
    title = _TITLES.get(metric.name, metric.name.replace("_", " "))
    unit = "share" if metric.name.startswith("pass@") else metric.unit
    return Column(metric.name, title, unit, metric.protocol, None if whole else limit)


def task_column(label: str) -> Column:
    """Stands for a task of which no cell has given a number yet."""
    return Column(label, label, kind="task")


def memory_columns(known: set[str], *, wide: bool = False, every: bool = False) -> list[Column]:
    """Columns of the memory facts in ``known`` (names). The short form has one column for what a
    process needs: VRAM where there was a GPU (the driver's number, else the framework's), else RAM.
    ``every``: those of both forms."""
    short = [c for c in (BPW, SIZE) if c.name in known]
    short += [c for c in (VRAM, RESERVED, ALLOCATED, RAM) if c.name in known][:1]
    long = [c for c in WIDE if c.name in known]
    if every:
        return list({c.id: c for c in (*short, *long)}.values())
    return long if wide else short


def starcoder2_columns(quality: Sequence[Column], known: set[str]) -> list[Column]:
    """HumanEval's pass@1 and pass@10 (a column each, also where nothing measured it) and the process's
    memory."""
    passes = []
    humaneval = [c for c in quality if c.protocol.startswith("humaneval/")]
    for name in ("pass@1", "pass@10"):
        passes += [c for c in humaneval if c.name == name] or [Column(name, name, "share")]
    peaks = [c for c in memory_columns(known) if c not in (BPW, SIZE)]
    return [*passes, *peaks]


def select(columns: Sequence[Column], patterns: Sequence[str]) -> list[Column]:
    """The columns that match names or globs (``ppl``, ``ppl*c4*``, ``vram_*``), in that order. A word
    that heads columns means these, and not others that have it as a name.

    Raises:
        UsageError: a pattern matches no column of these records.
    """
    chosen: dict[str, Column] = {}
    for pattern in patterns:
        headed = [c for c in columns if c.title.lower() == pattern.lower()]
        hits = headed or [c for c in columns if _matches(c, pattern)]
        if not hits:
            known = {c.name for c in columns}
            raise UsageError(f"no column {pattern!r} in these results{did_you_mean(pattern, known)}")
        chosen.update({c.id: c for c in hits})
    return list(chosen.values())


def _matches(column: Column, pattern: str) -> bool:
    wanted = pattern.lower()
    return any(fnmatchcase(text.lower(), wanted) for text in (column.name, column.id, column.title))
