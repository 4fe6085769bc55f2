"""Makers of records, as the runner writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from qeval.core.record import Conditions, MemoryReport, Metric, Record

QUANTIZATIONS: dict[str, dict[str, Any]] = {
    "none": {"name": "none", "label": "none", "options": {}},
    "Q8_0": {"name": "gguf", "label": "Q8_0", "options": {"type": "Q8_0"}},
    "Q5_K_M": {"name": "gguf", "label": "Q5_K_M", "options": {"type": "Q5_K_M"}},
    "RTN W4": {"name": "rtn", "label": "RTN W4", "options": {"num_bits": 4}},
}
BPW = {"none": 16.0, "Q8_0": 8.5, "Q5_K_M": 5.7, "RTN W4": 4.25}
TASKS = ["perplexity", "humaneval", "speed"]
GIB = 2**30
BOX = Conditions("box", "cpu", "a CPU", n_threads=4, cores=8, engine_version="1.0")


def record(
    quantization: str = "none",
    task: str = "perplexity",
    metrics: Sequence[Metric] = (),
    *,
    model: str = "org/model",
    dtype: str = "bfloat16",
    status: Any = "ok",
    limit: int | None = None,
    memory: MemoryReport | None = None,
    order: tuple[int, int, int] | None = None,
    **fields: Any,
) -> Record:
    known = list(QUANTIZATIONS)
    cell = {
        "model": {"id": model, "identity": f"sha256:{model}", "dtype": dtype},
        "quantization": dict(
            QUANTIZATIONS.get(
                quantization, {"name": quantization, "label": quantization, "options": {}}
            )
        ),
        "task": {"name": task, "label": task, "options": {}},
        "engine": {"name": "llamacpp" if quantization.startswith("Q") else "hf"},
        "limit": limit,
        "baseline": quantization == "none",
        "order": list(order or (0, known.index(quantization), TASKS.index(task))),
    }
    artifact = {
        "bpw": BPW.get(quantization, 4.0),
        "bpw_file": BPW.get(quantization, 4.0) + 0.1,
        "weight_bytes": int(BPW.get(quantization, 4.0) * GIB / 8),
        "embedding_bytes": GIB // 4,
        "simulated": quantization.startswith("RTN"),
        "notes": [],
    }
    peak = memory or MemoryReport(kv_cache=GIB // 8, context=2048, ram_peak=3 * GIB)
    ok = status == "ok"
    key = f"{model}-{dtype}-{quantization}-{task}-{limit}"
    given = {
        "artifact": artifact if ok else None,
        "memory": peak if ok else None,
        "conditions": BOX if ok else None,
        **fields,
    }
    made = Record("eval", key, cell, status, tuple(metrics), **given)
    return Record.from_json(made.to_json(), made.folder)  # as the store reads it


def ppl(
    values: Sequence[float], protocol: str = "gptq/wikitext2", *, stderr: float | None = 0.1
) -> Metric:
    value = math.exp(sum(values) / len(values))
    return Metric("ppl", value, protocol, stderr=stderr, n=len(values), values=tuple(values))


def pass_at_1(passed: Sequence[float], protocol: str = "humaneval/base/greedy") -> Metric:
    units = tuple(f"HumanEval/{i}" for i in range(len(passed)))
    mean = sum(passed) / len(passed)
    low, high = max(0.0, mean - 0.1), min(1.0, mean + 0.1)
    n, values = len(passed), tuple(passed)
    return Metric("pass@1", mean, protocol, low=low, high=high, n=n, values=values, units=units)
