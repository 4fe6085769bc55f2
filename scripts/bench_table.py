"""How long `qeval table` takes on 2,000 records: 50 models x 8 quantizations x 5 tasks.

    python scripts/bench_table.py [--repeats 5]

Three perplexities with the NLL of 148 windows each, HumanEval with pass@1 and pass@10 of 164 problems
(20 samples each), and speed. Prints the median wall time of the whole process, interpreter start
included, and its ratio to the 1.5 s that it may take.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from qeval.core.record import MemoryReport, Metric, Record
from qeval.store.records import Store

BUDGET_S = 1.5
MODELS, WINDOWS, PROBLEMS, SAMPLES = 50, 148, 164, 20
QUANTIZATIONS = ("none", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "RTN W8 g128", "RTN W4 g128")
TASKS = ("gptq/wikitext2", "gptq/ptb", "gptq/c4", "humaneval", "speed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        n = write_records(Path(folder))
        size = Store(folder).path.stat().st_size / 2**20
        print(
            f"{n} records, {size:.1f} MiB; median of {repeats} runs, ratio to the {BUDGET_S} s allowed"
        )
        bare = median_time([sys.executable, "-c", "pass"], repeats)
        print(f"{'bare interpreter':24} {bare:6.3f} s  {bare / BUDGET_S:5.2f}")
        for extra in ([], ["--format", "markdown"], ["--format", "json"], ["--format", "csv"]):
            command = [sys.executable, "-m", "qeval", "table", folder, *extra]
            seconds = median_time(command, repeats)
            print(f"{'table ' + ' '.join(extra):24} {seconds:6.3f} s  {seconds / BUDGET_S:5.2f}")


def median_time(command: list[str], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def write_records(folder: Path) -> int:
    """All records in one file, without a sync for each; their number."""
    rng = random.Random(0)
    records = [
        record(rng, model, quantization, task)
        for model in range(MODELS)
        for quantization in range(len(QUANTIZATIONS))
        for task in range(len(TASKS))
    ]
    lines = (json.dumps(r.to_json(), separators=(",", ":")) for r in records)
    Store(folder).path.write_text("\n".join(lines) + "\n")
    return len(records)


def record(rng: random.Random, model: int, quantization: int, task: int) -> Record:
    name = TASKS[task]
    cell: dict[str, Any] = {
        "model": {"id": f"org/model-{model}", "identity": f"hub:{model}", "dtype": "bfloat16"},
        "quantization": {
            "name": "method",
            "label": QUANTIZATIONS[quantization],
            "options": {"q": quantization},
        },
        "task": {"name": name.partition("/")[0], "label": name, "options": {}},
        "engine": {"name": "hf"},
        "limit": None,
        "baseline": quantization == 0,
        "order": [model, quantization, task],
    }
    return Record(
        kind="eval",
        key=f"{model:03}{quantization:03}{task:03}".rjust(64, "a"),
        cell=cell,
        status="ok",
        metrics=tuple(metrics(rng, name, quantization)),
        memory=MemoryReport(10**9, 10**8, 10**7, 2048, ram_peak=2 * 10**9),
        artifact={
            "bpw": 16.0 - quantization,
            "weight_bytes": 10**9,
            "embedding_bytes": 10**8,
            "simulated": quantization > 5,
            "notes": [],
        },
        timing={"start": 0.0, "end": 60.0},
        provenance={"text_sha256": "f" * 64, "packages": {f"package-{i}": "1.2.3" for i in range(20)}},
    )


def metrics(rng: random.Random, task: str, quantization: int) -> list[Metric]:
    if task == "speed":
        return [Metric("decode_tok_s", 20.0 + quantization, "speed/b1", "tok/s", n=5)]
    if task == "humaneval":
        return [_pass_at(rng, k, quantization) for k in (1, 10)]
    values = tuple(3 + quantization / 100 + rng.gauss(0, 0.3) for _ in range(WINDOWS))
    ppl = math.exp(statistics.fmean(values))
    stderr = ppl * statistics.stdev(values) / math.sqrt(WINDOWS)
    return [Metric("ppl", ppl, task, stderr=stderr, n=WINDOWS, values=values)]


def _pass_at(rng: random.Random, k: int, quantization: int) -> Metric:
    chance = 0.4 - quantization / 50
    passed = [sum(rng.random() < chance for _ in range(SAMPLES)) for _ in range(PROBLEMS)]
    values = tuple(1 - math.comb(SAMPLES - c, k) / math.comb(SAMPLES, k) for c in passed)
    mean = statistics.fmean(values)
    units = tuple(f"HumanEval/{i}" for i in range(PROBLEMS))
    protocol = "humaneval/base/t0.8/n20"
    return Metric(
        f"pass@{k}",
        mean,
        protocol,
        low=mean - 0.05,
        high=mean + 0.05,
        n=PROBLEMS,
        values=values,
        units=units,
    )


if __name__ == "__main__":
    main()
