#!/usr/bin/env python3
"""What qeval itself costs: start-up, an up-to-date run, and each cell beyond what it measures.

A cell's overhead is the wall time of its worker less the time a plain Python process needs to import
torch and transformers, load the model and its tokenizer and score the same windows.

    python scripts/bench_overhead.py MODEL_FOLDER
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

SPEC = """\
name: overhead
models: [{model}]
dtype: float32
quantizations: [none]
tasks: [{{perplexity: {{datasets: [pydoc], limit: 1}}}}]
"""
PLAIN = """\
import math, sys, torch
from pydoc_data.topics import topics
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
text = "\\n\\n".join(topics[k] for k in sorted(topics))
n = min(2048, model.config.max_position_embeddings)
ids = torch.tensor([tokenizer(text)["input_ids"][:n]])
with torch.inference_mode():
    logits = model(ids).logits[0, :-1].float()
print(math.exp(torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item()))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    model = args.model.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        spec = Path(scratch) / "spec.yaml"
        spec.write_text(SPEC.format(model=model))
        fresh = [time_run(spec, Path(scratch) / f"results{i}") for i in range(args.repeats)]
        again = [time_run(spec, Path(scratch) / "results0") for _ in range(args.repeats)]
        plain = [timed([sys.executable, "-c", PLAIN, str(model)]) for _ in range(args.repeats)]
    shown = [
        (
            "qeval --help",
            [timed([sys.executable, "-m", "qeval", "--help"]) for _ in range(args.repeats)],
        ),
        ("qeval run, nothing to do", again),
        ("qeval run, one cell", fresh),
        ("the same by a plain script", plain),
    ]
    print(f"{'':32}{'median s':>10}{'min s':>8}")
    for name, times in shown:
        print(f"{name:32}{median(times):10.2f}{min(times):8.2f}")
    print(
        f"{'overhead of a cell':32}{median(fresh) - median(plain):10.2f}{min(fresh) - min(plain):8.2f}"
    )


def time_run(spec: Path, results: Path) -> float:
    command = ["run", str(spec), "--results", str(results), "--device", "cpu"]
    return timed([sys.executable, "-m", "qeval", *command])


def timed(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=os.environ)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
