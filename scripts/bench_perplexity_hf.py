#!/usr/bin/env python3
"""Perplexity on the torch engine against a bare forward loop: same model, windows and threads.

The bare loop is what a paper's script does: model(ids).logits, shift, cross-entropy. Runs alternate, so
that both meet the same machine; the ratio is of medians. Goal: within 5%.

    python scripts/bench_perplexity_hf.py models/SmolLM2-135M-Instruct --windows 3
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch.nn.functional import cross_entropy

from qeval.core.artifact import ModelRef
from qeval.core.settings import EngineSettings
from qeval.data.datasets import DataSource
from qeval.engines.hf import HfEngine
from qeval.formats.describe import describe_folder
from qeval.models.tokenizer import load_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    settings = EngineSettings(args.device, args.dtype)
    lm = HfEngine.open(describe_folder(args.model, args.dtype), settings)
    tokenizer = load_tokenizer(ModelRef(str(args.model), args.model, "", args.dtype))
    ids = tokenizer.encode("\n\n".join(DataSource().load("pydoc").documents))
    windows = [ids[i * args.seq_len : (i + 1) * args.seq_len] for i in range(args.windows)]
    runs: dict[str, Callable[[], float]] = {
        "bare forward loop": lambda: bare(lm._model, windows, args.device),
        "qeval": lambda: math.exp(sum(float(x.mean()) for x in lm.nll(windows)) / len(windows)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    ppl: dict[str, float] = {}
    for repeat in range(args.repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            ppl[name] = run()
            if repeat:  # the first is a warm-up
                seconds[name].append(time.perf_counter() - start)
    base = median(seconds["bare forward loop"])
    print(f"{args.model.name}, {args.dtype}, {args.device}, {args.windows} x {args.seq_len} tokens")
    print(f"{'':20}{'PPL':>10}{'median s':>10}{'min s':>9}{'ratio':>8}")
    for name, times in seconds.items():
        typical = median(times)
        print(f"{name:20}{ppl[name]:10.4f}{typical:10.2f}{min(times):9.2f}{typical / base:8.3f}")


@torch.inference_mode()
def bare(model: torch.nn.Module, windows: list[list[int]], device: str) -> float:
    means = []
    for window in windows:
        ids = torch.tensor([window], device=device)
        logits = model(ids, use_cache=False).logits
        means.append(cross_entropy(logits[0, :-1].float(), ids[0, 1:]).item())
    return math.exp(sum(means) / len(means))


if __name__ == "__main__":
    main()
