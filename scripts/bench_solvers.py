#!/usr/bin/env python3
"""Every solver of the laboratory on one seeded layer: what is lost, what it costs, how long it takes.

    python scripts/bench_solvers.py [--rows 64] [--columns 256] [--tokens 1024] [--bits 4 3]
        [--group 32] [--heavy 0.01] [--device cuda] [--gptqmodel]

One W [rows, columns] and one H = X X^T / tokens for all, so that the losses, tr((W-Q) H (W-Q)^T) over
tr(W H W^T), differ by the algorithm alone. X is correlated (I + N/10) N with inputs of uneven size
(lognormal); ``--heavy`` makes a share of the weights five times as large. ``--gptqmodel`` adds
GPTQModel's GPTQ on the same W and X, in a process of its own; its loss is computed here, from the
weights that it returns. Prints a markdown table. Seconds are of one call, after a warm-up on CUDA.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from qeval.quant.solvers.base import GridRules, Solution, loss, off_grid
from qeval.quant.solvers.gptq import gptq
from qeval.quant.solvers.outliers import Outliers, quantease_outliers
from qeval.quant.solvers.quantease import Descending, gptq_quantease, quantease
from qeval.quant.solvers.rtn import rtn
from qeval.quant.solvers.spqr import spqr

Solver = Callable[[Tensor, Tensor, GridRules], Solution]
SOLVERS: dict[str, Solver] = {
    "RTN": rtn,
    "GPTQ": gptq,
    "GPTQ act-order": partial(gptq, act_order=True),
    "GPTQ act-order, static groups": partial(gptq, act_order=True, static_groups=True),
    "QuantEase, no relaxation": partial(quantease, how=Descending(relax=False)),
    "QuantEase": quantease,
    "GPTQ+QuantEase": gptq_quantease,
    "QuantEase +1% outliers": partial(quantease_outliers, outliers=Outliers(0.01)),
    "GPTQ+QuantEase +1% outliers": partial(quantease_outliers, outliers=Outliers(0.01), percdamp=0.01),
    "GPTQ+QuantEase +1% outlier columns": partial(
        quantease_outliers, outliers=Outliers(0.01, structured=True), percdamp=0.01
    ),
    "GPTQ, damping 1": partial(gptq, percdamp=1.0),
    "SpQR, 16-bit scales": partial(spqr, second_level=None),
    "SpQR": spqr,
    "SpQR, damping 0.01": partial(spqr, percdamp=0.01),
}
# By GPTQModel's own names; without act_group_aware, its default, which is an order of its own.
THEIRS = {
    "GPTQModel": {"desc_act": False, "act_group_aware": False},
    "GPTQModel act-order": {"desc_act": True, "act_group_aware": False},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--columns", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--group", type=int, default=-1)
    parser.add_argument("--symmetric", action="store_true")
    parser.add_argument("--heavy", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--gptqmodel", action="store_true")
    parser.add_argument("--theirs", type=Path, help=argparse.SUPPRESS)  # the other process
    args = parser.parse_args()
    if args.theirs:
        return run_theirs(args.theirs)
    weight, inputs = make_layer(args)
    hessian = inputs @ inputs.T / args.tokens
    print("| method | bits | relative loss | bits a weight | outliers | seconds |")
    print("|---|---|---|---|---|---|")
    for bits in args.bits:
        rules = GridRules(bits, args.group, args.symmetric)
        for row in ours(weight, hessian, rules):
            print(row, flush=True)
        if args.gptqmodel:
            for row in theirs(weight, inputs, hessian, rules):
                print(row, flush=True)
    return None


def make_layer(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """W [rows, columns] and X [columns, tokens], the same on every device."""
    g = torch.Generator().manual_seed(args.seed)
    mix = torch.eye(args.columns) + 0.1 * torch.randn(args.columns, args.columns, generator=g)
    x = mix @ torch.randn(args.columns, args.tokens, generator=g)
    x *= torch.randn(args.columns, 1, generator=g).exp()
    w = torch.randn(args.rows, args.columns, generator=g)
    w *= 1 + 4 * (torch.rand(args.rows, args.columns, generator=g) < args.heavy)
    return w.to(args.device), x.to(args.device)


def ours(weight: Tensor, hessian: Tensor, rules: GridRules) -> Iterator[str]:
    for name, solve in SOLVERS.items():
        if weight.is_cuda:
            solve(weight[:, :256], hessian[:256, :256], rules)
            torch.cuda.synchronize()
        start = time.perf_counter()
        solution = solve(weight, hessian, rules)
        if weight.is_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        assert off_grid(solution) == 0
        facts = solution.facts
        bpw = 8 * solution.stored_bytes / weight.numel()
        yield (
            f"| {name} | {rules.num_bits} | {facts.relative_loss:.5f} | {bpw:.3f} "
            f"| {facts.outlier_share:.2%} | {seconds:.2f} |"
        )


def theirs(weight: Tensor, inputs: Tensor, hessian: Tensor, rules: GridRules) -> Iterator[str]:
    """GPTQModel's rows: the other process gets W and X in a file and leaves Q there."""
    whole = loss(weight, torch.zeros_like(weight), hessian)
    with tempfile.TemporaryDirectory() as folder:
        told = {"weight": weight, "inputs": inputs, "rules": vars(rules), "names": list(THEIRS)}
        torch.save(told, Path(folder) / "in.pt")
        command = [sys.executable, __file__, "--theirs", folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
        if done.returncode:
            yield f"GPTQModel failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}"
            return
        results = torch.load(Path(folder) / "out.pt")
    for name, (quantized, seconds) in results.items():
        lost = loss(weight, quantized.to(weight.device), hessian) / whole
        yield f"| {name} | {rules.num_bits} | {lost:.5f} | | | {seconds:.2f} |"


def run_theirs(folder: Path) -> None:
    """In the other process: GPTQModel's quantizer on the bare layer."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # read when it is imported
    import gptqmodel as library
    from gptqmodel.quantization.gptq import GPTQ

    told = torch.load(folder / "in.pt")
    weight, inputs, rules = told["weight"], told["inputs"], told["rules"]
    results = {}
    for name in told["names"]:
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device)
        layer.weight.data.copy_(weight)
        config = library.GPTQConfig(
            bits=rules["num_bits"],
            group_size=rules["group_size"],
            sym=rules["symmetric"],
            damp_percent=0.01,
            **THEIRS[name],
        )
        solver = GPTQ(layer, config)
        solver.quantizer.configure(perchannel=True)
        with torch.no_grad():
            start = time.perf_counter()
            solver.add_batch(inputs.T[None], None)
            quantized = solver.quantize()[0]
        results[name] = (quantized.float(), time.perf_counter() - start)
    torch.save(results, folder / "out.pt")


if __name__ == "__main__":
    main()
