"""Makers of records, as the runner writes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

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


def _record(
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


def _ppl(
    values: Sequence[float], protocol: str = "gptq/wikitext2", *, stderr: float | None = 0.1
) -> Metric:
    value = math.exp(sum(values) / len(values))
    return Metric("ppl", value, protocol, stderr=stderr, n=len(values), values=tuple(values))


def _pass_at_1(passed: Sequence[float], protocol: str = "humaneval/base/greedy") -> Metric:
    units = tuple(f"HumanEval/{i}" for i in range(len(passed)))
    mean = sum(passed) / len(passed)
    interval = {"low": max(0.0, mean - 0.1), "high": min(1.0, mean + 0.1)}
    n = len(passed)
    return Metric("pass@1", mean, protocol, n=n, values=tuple(passed), units=units, **interval)


@pytest.fixture
def record() -> Callable[..., Record]:
    return _record


@pytest.fixture
def ppl() -> Callable[..., Metric]:
    return _ppl


@pytest.fixture
def pass_at_1() -> Callable[..., Metric]:
    return _pass_at_1


@pytest.fixture
def small(record, ppl, pass_at_1) -> list[Record]:
    """Four quantizations, three tasks: a good one, a bad one, a simulated one, failures and gaps."""
    windows = [3.0, 3.2, 2.8, 3.1, 2.9, 3.3]
    passed = [1.0, 0.0] * 10
    worse = [0.0] * 16 + [1.0, 0.0] * 2
    slightly = [w + 0.001 * (-1) ** i for i, w in enumerate(windows)]
    clearly = [w + 0.1 + 0.001 * i for i, w in enumerate(windows)]

    def speed(value: float) -> Metric:
        return Metric("decode_tok_s", value, "speed/b1", "tok/s", low=value - 1, high=value + 1, n=3)

    drift = "tokenizer drift: 2 tokens differ"
    return [
        record("none", "perplexity", [ppl(windows)]),
        record("none", "humaneval", [pass_at_1(passed)], limit=20),
        record("none", "speed", [speed(20.0)]),
        record("Q8_0", "perplexity", [ppl(slightly)], notes=(drift,)),
        record("Q8_0", "humaneval", [pass_at_1(passed)], limit=20),
        record("Q8_0", "speed", [speed(30.0)]),
        record("Q5_K_M", "perplexity", [ppl(clearly)], notes=(drift,)),
        record("Q5_K_M", "humaneval", [pass_at_1(worse)], limit=20),
        record("Q5_K_M", "speed", status="timeout", error="no result after 60 s\nlast lines"),
        record("RTN W4", "perplexity", [Metric("ppl", None, "gptq/wikitext2", n=6, nonfinite=0.5)]),
        record("RTN W4", "speed", [speed(19.0)]),
    ]
