"""The memory that a row needs at a context length: weights, KV cache, and what its process took beside
them when it was measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from qeval.core.record import MemoryReport, Record
from qeval.report.row_records import RowRecords, age

Kind = Literal["vram", "ram"]


@dataclass(frozen=True)
class Need:
    """In bytes. ``kv_token``: of the KV cache of one token of one sequence; None: not known.
    ``overhead``: the peak of the row's own process less its weights and the KV cache that it held, as
    measured during ``task`` with ``tokens`` of context; None: not measured."""

    weights: float
    kv_token: float | None
    overhead: float | None
    context: int
    batch: int
    task: str = ""
    tokens: int | None = None

    @property
    def kv_cache(self) -> float | None:
        return None if self.kv_token is None else self.kv_token * self.context * self.batch

    @property
    def total(self) -> float:
        """With nothing for what is not known."""
        return self.weights + (self.kv_cache or 0.0) + (self.overhead or 0.0)

    def largest_context(self, budget: float) -> int:
        """The longest context that fits, 0 for none; the asked one at the most where the KV cache is
        not known."""
        room = budget - self.weights - (self.overhead or 0.0)
        if room < 0:
            return 0
        if not self.kv_token:
            return self.context
        return math.floor(room / (self.kv_token * self.batch))


def need(row: RowRecords, kind: Kind, context: int, batch: int) -> Need | None:
    """None where the size of its weights is not known."""
    stored = row.artifact.get("weight_bytes")
    if stored is None:
        return None
    weights = float(stored + (row.artifact.get("embedding_bytes") or 0))
    records = sorted((r for r in row.evals if r.status == "ok"), key=_first)
    caches = [m.kv_cache / m.context for r in records if (m := r.memory) and m.kv_cache and m.context]
    kv_token = caches[0] if caches else None
    for record in records:
        peak = _peak(record, kind)
        if record.memory is not None and peak is not None:
            over = max(0.0, peak - weights - _held_cache(record, record.memory, kind))
            task = str((record.cell.get("task") or {}).get("label", "?"))
            return Need(weights, kv_token, over, context, batch, task, record.memory.context)
    return Need(weights, kv_token, None, context, batch)


def _first(record: Record) -> tuple[float, float]:
    """The task that says most about memory, the newest."""
    rank = record.memory.rank if record.memory else None
    return (math.inf if rank is None else rank, -age(record))


def _held_cache(record: Record, memory: MemoryReport, kind: Kind) -> float:
    """The pool on the GPU of an engine that reserves one (vLLM); else one sequence at the least."""
    pool = record.provenance.get("kv_pool_bytes") if kind == "vram" else None
    return float(pool or memory.kv_cache or 0)


def _peak(record: Record, kind: Kind) -> int | None:
    """On the kind of device that is asked about."""
    memory = record.memory or MemoryReport()
    on_gpu = (memory.vram_process, memory.vram_reserved, memory.vram_allocated)
    found = next((n for n in on_gpu if n is not None), None)
    if kind == "vram":
        share = record.provenance.get("kv_pool_bytes", 0) is None  # of the GPU, of whatever size
        return None if share else found
    used_gpu = record.conditions is not None and str(record.conditions.device).startswith("cuda")
    return None if found is not None or used_gpu else memory.ram_peak
