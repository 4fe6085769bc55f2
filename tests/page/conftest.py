"""Results folders as a run leaves them, with all that a page shows."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import made_records
import pytest
from made_records import GIB, pass_at_1, ppl

from qeval.core.record import Conditions, MemoryReport, Metric, Record
from qeval.store.records import Store
from qeval.tasks.divergence.summary import summarized
from qeval.tasks.divergence.tokens import Tokens
from qeval.tensor_stats.rows import Statistics, TensorRow
from qeval.tensor_stats.rows import write as write_statistics

BITS = {"Q8_0": 8.5, "Q5_K_M": 5.7, "Q4_K_M": 4.8, "Q2_K": 3.2, "RTN W4": 4.25}
SPEC = """name: mine
models: [org/model]
quantizations: [none, gguf: [Q8_0, Q5_K_M, Q4_K_M, Q2_K], rtn: {num_bits: 4}]
tasks: [perplexity, divergence, humaneval, speed]
"""
BOX = Conditions("box", "cpu", "a CPU", n_threads=4, cores=8, engine_version="1.0")


def divergence(scale: float, n_windows: int, rng: random.Random) -> tuple[Metric, ...]:
    """Tokens whose divergence is about ``scale`` nats."""
    import numpy as np

    windows = []
    for _ in range(n_windows):
        top = np.array([rng.random() for _ in range(40)])
        kld = np.array([scale * rng.expovariate(1.0) for _ in range(40)])
        same = (kld < 0.5).astype(float)
        nll = np.array([rng.expovariate(0.5) for _ in range(40)])
        windows.append(Tokens(kld, 1 - np.minimum(kld, 1), same, top, -kld / 10, nll, nll + kld))
    return summarized(windows, "kl/llamacpp/pydoc")


def make(
    folder: Path,
    rows: Sequence[str],
    *,
    windows: int = 12,
    problems: int = 12,
    model: str = "org/model",
    completion: Callable[[str, int], str] = lambda row, i: f"    return {i}  # {row}\n",
    spec: bool = True,
) -> list[Record]:
    """One model: ``none``, these rows and a floor, each with all tasks. Every row loses some problems
    that `none` solves, and wins one."""
    rng = random.Random(7)
    base = [3.0 + 0.3 * rng.random() for _ in range(windows)]
    passed = [float(i % 3 > 0) for i in range(problems)]
    found: list[Record] = []
    named = {"none": 16.0, **{row: BITS.get(row, 4 + i * 0.1) for i, row in enumerate(rows)}}
    for order, (row, bits) in enumerate(named.items()):
        off = 0.0 if row == "none" else 2.0 ** (4 - bits) / 4
        nll = [x + off * (1 + 0.1 * rng.random()) for x in base]
        solved = [0.0 if off > i / 20 else p for i, p in enumerate(passed)]
        if off:
            solved[3 % problems] = 1.0
        memory = MemoryReport(
            kv_cache=GIB // 8, context=2048, ram_peak=int(bits * GIB / 8) + GIB // 2, rank=0
        )
        label = {"name": "gguf", "label": row, "options": {"type": row}}
        kld = divergence(off or 1e-9, windows, rng)
        speeds = [_speed(b, 200 / bits * b**0.8) for b in (1, 4, 16)]
        tasks: dict[str, Sequence[Metric]] = {
            "perplexity": [ppl(nll)],
            "divergence": kld,
            "humaneval": [pass_at_1(solved)],
            "speed": speeds,
        }
        for place, (task, metrics) in enumerate(tasks.items()):
            if task == "speed" and row.startswith("RTN"):
                continue
            made = made_records.record(
                row,
                task,
                metrics,
                model=model,
                memory=memory,
                order=(0, order, place),
                conditions=BOX,
                provenance={"qeval": "0.1.0", "python": "3.11.7", "packages": {"torch": "2.13.0"}},
                timing={"end": 1_760_000_000.0},
            )
            if row != "none" and not row.startswith("RTN"):
                made = replace(made, cell={**made.cell, "quantization": label})
            artifact = {**(made.artifact or {}), "bpw": bits, "weight_bytes": int(bits * GIB / 8)}
            files = _kept(folder, made, solved, completion) if task == "humaneval" else {}
            found.append(replace(made, key=f"{model}-{row}-{task}", artifact=artifact, files=files))
    found += [_floor(model, windows, len(named), rng), _statistics(folder, model)]
    for record in found:
        Store(folder).append(record)
    if spec:
        (folder / "spec.yaml").write_text(SPEC)
    return found


def _speed(batch: int, value: float) -> Metric:
    name = f"speed/d128+64b{batch}"
    return Metric("decode_tok_s", value, name, "tok/s", low=value - 1, high=value + 1, n=3)


def _kept(
    folder: Path, record: Record, solved: Sequence[float], completion: Callable[[str, int], str]
) -> dict[str, str]:
    row = str(record.cell["quantization"]["label"])
    inside = folder / "cells" / row.replace("/", "-")[:40]
    inside.mkdir(parents=True, exist_ok=True)
    samples = [
        {"task_id": f"HumanEval/{i}", "completion": completion(row, i)} for i in range(len(solved))
    ]
    verdicts = [
        {
            "task_id": f"HumanEval/{i}",
            "sample": 0,
            "passed": bool(ok),
            "verdict": "passed" if ok else "failed: AssertionError",
            "detail": "" if ok else "assert 1 == 2",
        }
        for i, ok in enumerate(solved)
    ]
    for name, lines in (("samples", samples), ("verdicts", verdicts)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (inside / f"{name}.jsonl").write_text(text)
    return {n: str((inside / f"{n}.jsonl").relative_to(folder)) for n in ("samples", "verdicts")}


def _floor(model: str, windows: int, order: int, rng: random.Random) -> Record:
    made = made_records.record(
        "none", "divergence", divergence(1e-4, windows, rng), model=model, order=(0, order, 1)
    )
    label = {
        "name": "none",
        "label": "floor: rounding",
        "options": {"floor": {"kind": "rounding"}},
        "floor": "rounding",
    }
    cell = {**made.cell, "quantization": label, "baseline": False}
    return replace(made, key=f"{model}-floor", cell=cell)


def _statistics(folder: Path, model: str) -> Record:
    made = made_records.record("none", "tensor_stats", [], model=model, order=(0, 0, 4))
    about = {
        "model": model,
        "dtype": "bfloat16",
        "dataset": "pydoc",
        "seq_len": 512,
        "windows": 1,
        "bits": {"weights": 4, "group_size": -1, "activations": 8, "kv_cache": 4},
    }
    rows = tuple(
        TensorRow(
            "weight",
            layer,
            name,
            (name,),
            10,
            0,
            1.0,
            0.0,
            1.0,
            3.0,
            2.0 + layer,
            0,
            4,
            (),
            20.0 - layer,
        )
        for layer in range(3)
        for name in ("self_attn.q_proj", "mlp.down_proj")
    )
    file = folder / "cells" / "statistics" / "layers.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_statistics(file, Statistics(about, rows))
    return replace(made, files={"layers": str(file.relative_to(folder))})


@pytest.fixture(scope="session", autouse=True)
def _one_bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Vega is put together once: each test has a cache of its own."""
    pytest.importorskip("vl_convert")
    from qeval.page import write

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QEVAL_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        made = write.bundle()
        patch.setattr(write, "bundle", lambda: made)
        yield


@pytest.fixture(scope="session")
def made_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five rows beside the baseline, one of them simulated."""
    folder = tmp_path_factory.mktemp("page") / "mine"
    make(folder, list(BITS))
    return folder


@pytest.fixture(scope="session")
def made_folder() -> Callable[..., list[Record]]:
    return make
