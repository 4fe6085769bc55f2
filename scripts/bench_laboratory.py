#!/usr/bin/env python3
"""What the laboratory's methods take on a large model: seconds a decoder block, extrapolated, memory.

    python scripts/bench_laboratory.py [--shape starcoder2-15b] [--blocks 3] [--n-samples 128]
        [--seq-len 2048] [--bits 4] [--group 128] [--methods gptq quantease ...] [--memory 24]
        [--gptqmodel]

The first blocks of a known shape with random weights, in bfloat16 on the host, go through the driver
that `qeval run` uses, on random tokens. The time of a block is from the end of one to the end of the
next: moving it, measuring its inputs, solving and running it; not reading and writing files. ``rtn``
needs no inputs: its time is that of moving and rounding. Memory is the peak that torch reserved; with
``--memory`` it may not reserve more than so many GB (1e9 bytes), as on a smaller card.
``--gptqmodel`` runs GPTQModel's own quantization of the same model in a process of its own, with one
block and with all of them: its time of a block is the difference. Prints a markdown table.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from make_random_model import SHAPES

from qeval.models.architectures import decoder_blocks
from qeval.models.experts import experts_as_linears
from qeval.quant.laboratory.driver import quantize_blocks
from qeval.quant.laboratory.solvers.base import GridRules
from qeval.quant.laboratory.solvers.clipping import clipped_rtn
from qeval.quant.laboratory.solvers.gptq import gptq
from qeval.quant.laboratory.solvers.outliers import Outliers, quantease_outliers
from qeval.quant.laboratory.solvers.quantease import gptq_quantease, quantease
from qeval.quant.laboratory.solvers.spqr import spqr
from qeval.quant.laboratory.transforms.awq import AwqScales
from qeval.quant.rtn import RtnOptions, round_linear

GIB = 2**30
Told = Callable[[int, int, str], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="starcoder2-15b")
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--n-samples", type=int, default=128)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--methods", nargs="+", choices=sorted(METHODS), default=list(METHODS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--memory", type=float, help="GB that torch may have of the GPU")
    parser.add_argument("--gptqmodel", action="store_true")
    parser.add_argument("--theirs", action="store_true", help=argparse.SUPPRESS)  # the other process
    args = parser.parse_args()
    if args.memory and args.device != "cpu":
        whole = torch.cuda.get_device_properties(args.device).total_memory
        torch.cuda.set_per_process_memory_fraction(args.memory * 1e9 / whole)
    if args.theirs:
        return run_theirs(args)
    if args.blocks < 2:
        parser.error("--blocks: the first one warms up, so at least 2")
    n_blocks = SHAPES[args.shape]["num_hidden_layers"]
    print(f"| method | s a block | min for {n_blocks} blocks | peak GiB | mean relative loss |")
    print("|---|---|---|---|---|")
    for name in args.methods:
        seconds, peak, lost = METHODS[name](args)
        show(name, seconds, n_blocks, peak, lost)
    if args.gptqmodel:
        seconds, peak = theirs(args)
        show("GPTQModel GPTQ", seconds, n_blocks, peak, None)
    return None


def show(name: str, seconds: float, n_blocks: int, peak: float, lost: float | None) -> None:
    loss = "" if lost is None else f"{lost:.5f}"
    whole = seconds * n_blocks / 60
    print(f"| {name} | {seconds:.2f} | {whole:.1f} | {peak / GIB:.1f} | {loss} |", flush=True)


def make(args: argparse.Namespace, n_blocks: int) -> Any:
    """The first blocks of the shape, bfloat16, on the host; seed 0."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    shape = {**SHAPES[args.shape], "num_hidden_layers": n_blocks}
    config = AutoConfig.for_model(**shape, bos_token_id=0, eos_token_id=0)
    with torch.device(args.device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.to("cpu").eval()
    if args.device != "cpu":
        torch.cuda.empty_cache()
    return model


def windows(args: argparse.Namespace) -> list[list[int]]:
    g = torch.Generator().manual_seed(1)
    vocabulary = SHAPES[args.shape]["vocab_size"]
    drawn: list[list[int]] = torch.randint(
        0, vocabulary, (args.n_samples, args.seq_len), generator=g
    ).tolist()
    return drawn


def by_driver(
    solver: Callable[..., Any],
    args: argparse.Namespace,
    transform: Callable[[GridRules], Any] | None = None,
) -> tuple[float, float, float]:
    """Seconds a block (all but the first), peak bytes, mean relative loss."""
    rules = GridRules(args.bits, args.group)
    model = make(args, args.blocks)
    with experts_as_linears(model):
        last = set(accumulate(len(block.linears) for block in decoder_blocks(model)))
    ends: list[float] = []

    def told(done: int, total: int, unit: str) -> None:
        if done in last:
            synchronize(args)
            ends.append(time.perf_counter())

    start_memory(args)
    results = quantize_blocks(
        model,
        windows(args),
        partial(solver, rules=rules),
        device=torch.device(args.device),
        kind=f"int{args.bits}",
        progress=told,
        true_sequential=transform is None,
        prepare=transform(rules) if transform else None,
    )
    lost = sum(r.facts.relative_loss for r in results) / len(results)
    return (ends[-1] - ends[0]) / (args.blocks - 1), peak_memory(args), lost


def by_rounding(args: argparse.Namespace) -> tuple[float, float, None]:
    """As `rtn` does it: each linear to the device, rounded, and back."""
    model, options = make(args, args.blocks), RtnOptions(num_bits=args.bits, group_size=args.group)
    start_memory(args)
    seconds = []
    with torch.inference_mode(), experts_as_linears(model):
        for block in decoder_blocks(model):
            start = time.perf_counter()
            for linear in block.linears:
                round_linear(linear, options, torch.device(args.device))
            synchronize(args)
            seconds.append(time.perf_counter() - start)
    return sum(seconds[1:]) / (args.blocks - 1), peak_memory(args), None


METHODS: dict[str, Callable[[argparse.Namespace], tuple[float, float, float | None]]] = {
    "rtn": by_rounding,
    "gptq": partial(by_driver, gptq),
    "gptq-act-order": partial(by_driver, partial(gptq, act_order=True)),
    "quantease": partial(by_driver, quantease),
    "gptq-quantease": partial(by_driver, gptq_quantease),
    "quantease-outliers": partial(by_driver, partial(quantease_outliers, outliers=Outliers(0.01))),
    "spqr": partial(by_driver, spqr),
    "awq": partial(by_driver, clipped_rtn, transform=AwqScales),
}


def synchronize(args: argparse.Namespace) -> None:
    if args.device != "cpu":
        torch.cuda.synchronize()


def start_memory(args: argparse.Namespace) -> None:
    if args.device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory(args: argparse.Namespace) -> float:
    return float(torch.cuda.max_memory_reserved()) if args.device != "cpu" else float("nan")


def theirs(args: argparse.Namespace) -> tuple[float, float]:
    """GPTQModel's seconds a block and peak bytes, in a process of its own."""
    given = [f"--{k.replace('_', '-')}={getattr(args, k)}" for k in ("shape", "n_samples", "seq_len")]
    given += [f"--bits={args.bits}", f"--group={args.group}", f"--device={args.device}"]
    given += [f"--memory={args.memory}"] if args.memory else []
    command = [sys.executable, __file__, "--theirs", f"--blocks={args.blocks}", *given]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"GPTQModel failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    seconds, peak = done.stdout.strip().splitlines()[-1].split()
    return float(seconds), float(peak)


def run_theirs(args: argparse.Namespace) -> None:
    """In the other process: prints seconds a block and peak bytes of GPTQModel's quantize()."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # read when it is imported
    import gptqmodel as library

    texts = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in windows(args)]
    seconds = {}
    for blocks, given in ((1, texts[:2]), (1, texts), (args.blocks, texts)):  # the first warms up
        with tempfile.TemporaryDirectory() as folder:
            make(args, blocks).save_pretrained(folder)
            config = library.GPTQConfig(
                bits=args.bits,
                group_size=args.group,
                sym=False,
                desc_act=False,
                act_group_aware=False,
                damp_percent=0.01,
                offload_to_disk=False,
            )
            model = library.GPTQModel.load(folder, config)
        start_memory(args)
        start = time.perf_counter()
        model.quantize(given, batch_size=1)
        synchronize(args)
        seconds[blocks] = time.perf_counter() - start
        peak = peak_memory(args)
        print(f"{blocks} blocks, {len(given)} windows: {seconds[blocks]:.1f} s", file=sys.stderr)
        del model
    print((seconds[args.blocks] - seconds[1]) / (args.blocks - 1), peak)


if __name__ == "__main__":
    main()
