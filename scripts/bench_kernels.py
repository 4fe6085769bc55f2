#!/usr/bin/env python3
"""Every kernel that takes a packed GPTQ or AWQ checkpoint: is it right, what does it hold, how fast?

    python scripts/bench_kernels.py FOLDER... [--device cuda] [--tokens 512] [--skip-check]

Right: the logits of one window of random tokens against those of the same weights unpacked into float
linears (float32), as relative error in the norm; beside it what plain bfloat16 linears of the same
weights lose. Held: bytes of the model's tensors after that, over the files' size. Fast: that window's
forward, median of 5, warm. Prints a markdown table; a kernel that refuses is listed with its reason.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from qeval.core.errors import EngineError
from qeval.core.execution import Execution
from qeval.core.settings import EngineSettings
from qeval.formats.base import registered
from qeval.formats.describe import describe_packed
from qeval.formats.gptqmodel import OnGptqModel
from qeval.formats.load import resident_bytes
from qeval.quant.libraries.unpack import float_twin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16"))
    parser.add_argument("--skip-check", action="store_true", help="no float twin (large models)")
    args = parser.parse_args()
    device = torch.device(args.device)
    print("| checkpoint | kernel | class | relative error | held / stored | forward ms |")
    print("|---|---|---|---|---|---|")
    for folder in args.folders:
        artifact = describe_packed(folder)
        found = artifact.format
        one = registered(found) if found else None
        if found is None or not isinstance(one, OnGptqModel):
            raise SystemExit(f"{folder}: neither GPTQ nor AWQ")
        name = found.label
        torch.manual_seed(0)
        vocab = 512
        ids = torch.randint(0, vocab, (1, args.tokens), device=device)
        exact = None
        if not args.skip_check:
            twin = float_twin(folder, torch.float32, device)
            exact = logits(twin, ids)
            half = twin.to(getattr(torch, args.dtype))
            error = relative(logits(half, ids), exact)
            took = milliseconds(half, ids)
            print(f"| {name} | none | Linear {args.dtype} | {error:.2e} | | {took:.2f} |")
            del twin, half
        for kernel in one.backends:
            running = Execution.from_json({"kernel": kernel})
            settings = EngineSettings(device=args.device, dtype=args.dtype, execution=running)
            try:
                model = one.load(artifact, settings, device)
            except EngineError as err:
                reason = str(err).partition(f"{kernel}: ")[2][:150]
                print(f"| {name} | {kernel} | refused: {reason} | | | |", flush=True)
                continue
            distance = "" if exact is None else f"{relative(logits(model, ids), exact):.2e}"
            speed = milliseconds(model, ids)
            held = resident_bytes(model) / artifact.stored_bytes
            layer = type(dict(model.named_modules())[artifact.layers[0].name]).__name__
            print(
                f"| {name} | {kernel} | {layer} | {distance} | {held:.2f} | {speed:.2f} |", flush=True
            )
            del model
            if device.type == "cuda":
                torch.cuda.empty_cache()


@torch.inference_mode()
def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = model(input_ids=ids, use_cache=False).logits.float().cpu()
    return result


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@torch.inference_mode()
def milliseconds(model: Any, ids: torch.Tensor, repeats: int = 5) -> float:
    times = []
    for i in range(repeats + 2):
        if ids.is_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        model(input_ids=ids, use_cache=False)
        if ids.is_cuda:
            torch.cuda.synchronize()
        if i >= 2:
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


if __name__ == "__main__":
    main()
