#!/usr/bin/env python3
"""Divergence of two models against their two perplexities, on the same windows: goal at most 1.3 times.

Both models are resident. The second is the first with noise in its weights. Runs alternate, so that all
meet the same machine; times are medians.

    python scripts/bench_divergence.py --model models/SmolLM2-135M-Instruct --dtype float32 --windows 4
    python scripts/bench_divergence.py --shape llama-8b --device cuda --windows 64
"""

from __future__ import annotations

import argparse
import copy
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from qeval.core.artifact import Artifact
from qeval.core.settings import EngineSettings
from qeval.engines.hf import HfEngine
from qeval.store.references import References
from qeval.tasks.divergence.tokens import Tokens, compared

if TYPE_CHECKING:
    from qeval.engines.base import Logits

SHAPES = {
    "llama-8b": {
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", type=Path)
    what.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cache", action="store_true", help="also with the baseline kept on the disk")
    args = parser.parse_args()
    p, q = engines(args)
    rng = random.Random(0)
    ids = [[rng.randrange(p.vocab_size) for _ in range(args.seq_len)] for _ in range(args.windows)]
    first, threads = args.seq_len // 2 + 1, torch.get_num_threads()

    with ThreadPoolExecutor(threads) as pool, tempfile.TemporaryDirectory() as scratch:

        def divergence(source: Callable[[], Iterator[Logits]]) -> Callable[[], float]:
            def run() -> float:
                pairs = zip(ids, source(), q.predictions(ids, first=first), strict=True)
                parts = [compared(a, b, np.asarray(i[first:], np.int64), pool) for i, a, b in pairs]
                return float(np.nanmean(Tokens.joined(parts).kld))

            return run

        live = divergence(lambda: p.predictions(ids, first=first))
        runs: dict[str, Callable[[], float]] = {
            "perplexity of the baseline": lambda: float(
                np.mean(np.concatenate(list(p.nll(ids, first=first))))
            ),
            "perplexity of the row": lambda: float(
                np.mean(np.concatenate(list(q.nll(ids, first=first))))
            ),
            "divergence, both resident": live,
        }
        if args.cache:
            keep(p, ids, first, Path(scratch))
            found = References(Path(scratch)).find("0" * 64)
            assert found is not None
            runs["divergence, baseline on disk"] = divergence(
                lambda: found.predictions(ids, first=first)
            )
        times: dict[str, list[float]] = {name: [] for name in runs}
        values = {}
        for _ in range(args.repeats + 1):  # the first warms up
            for name, run in runs.items():
                begin = time.perf_counter()
                values[name] = run()
                times[name].append(time.perf_counter() - begin)
        report(
            args, {name: median(t[1:]) for name, t in times.items()}, values, len(ids) * args.seq_len
        )


def engines(args: argparse.Namespace) -> tuple[HfEngine, HfEngine]:
    dtype, device = getattr(torch, args.dtype), torch.device(args.device)
    torch.manual_seed(0)
    if args.model:
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).to(device).eval()
    else:
        kind = dict(SHAPES[args.shape])
        config = AutoConfig.for_model(str(kind.pop("model_type")), **kind)
        with device:
            model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1 + 0.02 * torch.randn((), device=device))
    artifact = Artifact(Path(), "hf", False, 0, 0, None, None)
    settings = EngineSettings(args.device, args.dtype)
    return HfEngine(model, artifact, settings), HfEngine(other, artifact, settings)


def keep(lm: HfEngine, ids: list[list[int]], first: int, cache: Path) -> None:
    begin = time.perf_counter()
    rows = sum(len(window) - first for window in ids)
    with References(cache).writing("0" * 64, rows, lm.vocab_size) as writer:
        for part in lm.predictions(ids, first=first):
            writer.append(part.float().cpu().numpy())
    print(
        f"computed and kept in {time.perf_counter() - begin:.2f} s: {2 * rows * lm.vocab_size:,} bytes"
    )


def report(
    args: argparse.Namespace, seconds: dict[str, float], values: dict[str, float], tokens: int
) -> None:
    name = args.shape or args.model.name
    place = torch.cuda.get_device_name() if args.device.startswith("cuda") else "the CPU"
    print(
        f"{name}, {args.dtype}, {args.windows} windows of {args.seq_len} on {place}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    both = seconds["perplexity of the baseline"] + seconds["perplexity of the row"]
    for what, s in seconds.items():
        ratio = f"  {s / both:.2f} of both perplexities" if what.startswith("divergence") else ""
        print(f"{what:30} {s:8.3f} s  {tokens / s:10,.0f} tok/s  {values[what]:.6f} nats{ratio}")


if __name__ == "__main__":
    main()
