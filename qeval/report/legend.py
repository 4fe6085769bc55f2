"""The lines under a table that say how to read it; only those that it needs."""

from __future__ import annotations

from collections.abc import Iterator

from qeval.report.columns import COST_UNITS
from qeval.report.format import difference_text, is_factor
from qeval.report.table import Entry, Table


def legend(table: Table, memory_task: str, contexts: set[int]) -> tuple[str, ...]:
    """``memory_task``: label of the task whose processes the peaks were measured in; ``contexts``: the
    sequence lengths that KV cache sizes are for."""
    return (*_numbers(table), *_marks(table), *_memory(table, memory_task, contexts))


def _numbers(table: Table) -> Iterator[str]:
    entries = [e for row in table.rows for e in row.entries.values()]
    if table.layout == "starcoder2":
        yield from _protocols(table)
        return
    if any(e.half is not None for e in entries):
        yield "±: 95% interval, 1.96 standard errors on each side"
    shares = [c for c in table.columns if c.unit == "share"]
    if any(_has_interval(row.entries[c.id]) for c in shares for row in table.rows):
        yield "pass@k [low, high]: 95% interval"
    yield from _differences(table, entries)


def _protocols(table: Table) -> Iterator[str]:
    for column in table.columns:
        if column.protocol:
            first = f", first {column.limit} problems only" if column.limit else ""
            yield f"{column.title}: {column.protocol}{first}"


def _differences(table: Table, entries: list[Entry]) -> Iterator[str]:
    names = " / ".join(dict.fromkeys(row.quantization for row in table.rows if row.baseline))
    kinds = {e.difference.kind for e in entries if e.difference}
    if kinds & {"relative", "points"}:
        yield (
            f"second line: difference from the baseline ({names}), paired unit by unit, with its 95% "
            "interval; pts: percentage points"
        )
    if any(e.difference and is_factor(e.difference) for e in entries):
        yield "× [low, high]: how many times the baseline, where that is ten and more"
    if "ratio" in kinds:
        yield f"× of a speed or time: ratio to the baseline ({names}), not tested"
    if any("n.s." in difference_text(e) for e in entries):
        yield "n.s.: not significant, the difference may be chance (p >= 0.05)"
    if not names and len(table.rows) > 1:
        yield "no row is a baseline: no differences are shown"


def _marks(table: Table) -> Iterator[str]:
    entries = [e for row in table.rows for e in row.entries.values()]
    if any(row.simulated for row in table.rows):
        yield (
            "†: simulated, float weights that carry the rounding: bpw and weights are what packed "
            "storage would take; peak memory and speed of a packed model were not measured (–)"
        )
    if any(row.low_bits for row in table.rows):
        kept = "KV cache is what packed storage would take; " if _has(table, "kv_cache") else ""
        yield (
            f"†: A2 to A8, KV2 to KV8: activations, keys and values rounded, and kept as floats; {kept}"
            "peak memory and speed were not measured (–)"
        )
    if any(c.limit for c in table.columns) and table.layout == "full":
        yield "[first N]: only the first N units (windows, problems) were measured"
    if any(e.status == "…" for e in entries):
        yield "…: not run yet"


def _memory(table: Table, task: str, contexts: set[int]) -> Iterator[str]:
    names = {c.name for c in table.columns}
    during = f", during the task {task}" if task else ""
    if "bpw" in names:
        yield "bpw: bits per weight of the quantized linears, scales and every other overhead counted"
    if "size" in names:
        yield "weights: stored size, scales, embeddings and head included"
    if "weights" in names:
        yield "layers: stored size of everything but embeddings and head, scales included"
    if names & {"vram_process", "vram_reserved", "vram_allocated"}:
        yield f"VRAM: peak of the row's own process{during}"
    if "ram_peak" in names:
        yield f"RAM: peak resident set of the row's own process{during}"
    if "kv_cache" in names and contexts:
        sizes = " or ".join(f"{n:,}" for n in sorted(contexts))
        yield f"KV cache: one sequence of {sizes} tokens"
    costs = [c for c in table.columns if c.kind == "metric" and c.unit in COST_UNITS]
    if any(_has_interval(row.entries[c.id]) for c in costs for row in table.rows):
        yield "speed or time [low, high]: lowest and highest of the repeats"


def _has(table: Table, column: str) -> bool:
    return any(c.name == column for c in table.columns)


def _has_interval(entry: Entry) -> bool:
    return entry.half is None and entry.low is not None
