"""What a row costs: stored bytes from its artifact, peaks from one task's process, times.

Peaks are comparable only if every row did the same work, so that they all come from one task: speed
where there is one, else HumanEval, MBPP or perplexity, in this order. Simulated rows have no peak of
their own: their process held float weights. Nor have rows with rounded activations or KV cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qeval.record import Record
from qeval.report.sources import Source

ACCOUNTED = frozenset({"bpw", "bpw_file", "size", "weights", "embeddings"})
"""Facts of a simulated row that say what packed storage would take."""

_TASKS = ("speed", "humaneval", "mbpp", "perplexity")
_CACHE = ("kv_cache", "context")
_PEAKS = ("vram_allocated", "vram_reserved", "vram_process", "ram_peak")

Facts = dict[str, float]


def accounted(row: Source, name: str) -> bool:
    """Whether the fact ``name`` of a row is what packed storage would take, not what it took."""
    if name == "kv_cache":
        return "kv_cache" in row.low_bits
    return row.simulated and name in ACCOUNTED


def costs(rows: Sequence[Source]) -> tuple[list[Facts], str]:
    """Per row its facts by column name (only those it has), and the label of the task whose
    processes the peaks were measured in ("" without any)."""
    task = _measured_task(record for row in rows for record in row.evals)
    contexts = {
        row.identity: peaks["context"] for row in rows if (peaks := _peaks(row, task)).get("context")
    }
    facts = []
    for row in rows:
        peaks = _peaks(row, task) or _cache(row, contexts.get(row.identity))
        values = {**_stored(row), **peaks, **_times(row)}
        facts.append({name: value for name, value in values.items() if value is not None})
    return facts, task


def _measured_task(records: Iterable[Record]) -> str:
    counts: dict[tuple[int, str], int] = {}
    for record in records:
        if record.status == "ok" and record.memory is not None:
            name = (record.cell.get("task") or {}).get("name")
            rank = _TASKS.index(name) if name in _TASKS else len(_TASKS)
            place = (rank, _label(record))
            counts[place] = counts.get(place, 0) + 1
    best = min(counts, key=lambda place: (place[0], -counts[place]), default=(0, ""))
    return best[1]


def _label(record: Record) -> str:
    task = record.cell.get("task") or {}
    return str(task.get("label") or task.get("name", "?"))


def _stored(row: Source) -> dict[str, float | None]:
    made = row.artifact
    weights, embeddings = made.get("weight_bytes"), made.get("embedding_bytes")
    return {
        "bpw": made.get("bpw"),
        "bpw_file": made.get("bpw_file"),
        "size": None if weights is None else weights + (embeddings or 0),
        "weights": weights,
        "embeddings": embeddings,
    }


def _peaks(row: Source, task: str) -> dict[str, float | None]:
    for record in row.evals:
        if record.memory and record.status == "ok" and _label(record) == task:
            wanted = _CACHE if row.costs_as_float else _CACHE + _PEAKS
            return {name: getattr(record.memory, name) for name in wanted}
    return {}


def _cache(row: Source, context: float | None) -> dict[str, float | None]:
    """The KV cache of a row that skips the task of the peaks, from what another task says of it: it
    grows with the context, so it stands beside the other rows' of the model."""
    for record in row.evals if row.costs_as_float else ():
        memory = record.memory
        if record.status == "ok" and memory and memory.kv_cache and memory.context:
            wanted = context or memory.context
            return {"kv_cache": memory.kv_cache * wanted / memory.context, "context": wanted}
    return {}


def _times(row: Source) -> dict[str, float | None]:
    walls = [r.timing["wall_s"] for r in row.evals if "wall_s" in r.timing]
    build = row.build
    peak = build.memory if build is not None else None
    return {
        "build_s": build.timing.get("build_s") if build is not None else None,
        "build_vram": peak.vram_process if peak else None,
        "build_ram": peak.ram_peak if peak else None,
        "wall_s": sum(walls) if walls else None,
    }
