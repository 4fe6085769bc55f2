#!/usr/bin/env python3
"""The laboratory's solvers on one layer, beside the reference programs on the same W and X.

    python scripts/bench_quantizers.py [--rows 64] [--columns 256] [--tokens 1024] [--bits 4 3]
        [--group 32] [--heavy 0.01] [--device cuda] [--only SpQR]
    python scripts/bench_quantizers.py --model DIR --layer model.layers.10.mlp.gate_proj
        [--dataset pydoc] [--n-samples 8] [--seq-len 512]
    ... --gptqmodel --gptq DIR --quantease DIR --spqr DIR --llm-awq DIR

Without --model the layer is made of a seed: X = (I + N/10) N with inputs of uneven size (lognormal);
--heavy makes a share of the weights five times as large. With it, W is a linear of that model and X
what that linear reads on calibration windows, all before it being float. The reference programs are
clones of github.com/IST-DASLab/gptq, linkedin/QuantEase and Vahe1994/SpQR, and the installed GPTQModel;
each runs in a process of its own (reference_quantizers.py) and gets W and X: the same H.

Prints a markdown table. Every loss is computed here: tr((W-Q) H (W-Q)^T) / tr(W H W^T), H in float64.
``levels`` is the most values that any row has in any group, outliers left out: over 2^bits, a result
does not lie on a grid (groups of no more columns than that cannot show it). A cell with two numbers has
theirs, then ours. Seconds are of quantizing with the inputs' moments at hand, after a warm-up: CPU time
on the CPU, the wall clock on CUDA. --llm-awq adds a table of AWQ's scales (awq_scales.py).

Their settings are ours: bits, groups, percdamp 0.01 (SpQR 1, threshold 0.2, second level of 3 bits by
16), 30 sweeps, the same order of columns. Theirs keep scales as float32, ours are float16.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from reference_quantizers import CLONES, Reference, clock, references, warm_up_inputs
from torch import Tensor

from qeval.core.errors import QevalError, UsageError, did_you_mean
from qeval.quant.laboratory.solvers.base import GridRules, Solution, loss, off_grid, sparse_bytes
from qeval.quant.laboratory.solvers.gptq import gptq
from qeval.quant.laboratory.solvers.outliers import Outliers, quantease_outliers
from qeval.quant.laboratory.solvers.quantease import Descending, gptq_quantease, quantease
from qeval.quant.laboratory.solvers.rtn import rtn
from qeval.quant.laboratory.solvers.spqr import spqr

Solver = Callable[[Tensor, Tensor, GridRules], Solution]


@dataclass(frozen=True)
class Row:
    """One method: how the laboratory does it, and what to ask which program for to get the same."""

    name: str
    solve: Solver
    references: dict[str, dict[str, Any]] = field(default_factory=dict)
    group_size: int | None = None  # its own, whatever --group says


BOTH_GPTQ = ("gptq", "gptqmodel")
SPQR_GROUP = 16
ROWS = [
    Row("RTN", rtn, {"gptq": {"rtn": True}}),
    Row("GPTQ", gptq, {name: {} for name in BOTH_GPTQ}),
    Row("GPTQ act-order", partial(gptq, act_order=True), {n: {"act_order": True} for n in BOTH_GPTQ}),
    Row(
        "GPTQ act-order, static groups",
        partial(gptq, act_order=True, static_groups=True),
        {name: {"act_order": True, "static_groups": True} for name in BOTH_GPTQ},
    ),
    Row("GPTQ, damping 1", partial(gptq, percdamp=1.0)),
    Row("QuantEase, no relaxation", partial(quantease, how=Descending(relax=False))),
    Row("QuantEase", quantease, {"quantease": {}}),
    Row("GPTQ+QuantEase", gptq_quantease, {"quantease": {"after_gptq": True}}),
    Row(
        "QuantEase +1% outliers",
        partial(quantease_outliers, outliers=Outliers(0.01)),
        {"quantease": {"outliers": 0.01}},
    ),
    Row(
        "GPTQ+QuantEase +1% outliers",
        partial(quantease_outliers, outliers=Outliers(0.01), percdamp=0.01),
    ),
    Row(
        "GPTQ+QuantEase +1% outlier columns",
        partial(quantease_outliers, outliers=Outliers(0.01, structured=True), percdamp=0.01),
    ),
    Row("SpQR", spqr, {"spqr": {}}, SPQR_GROUP),
    Row("SpQR act-order", partial(spqr, act_order=True), {"spqr": {"act_order": True}}, SPQR_GROUP),
    Row(
        "SpQR, 16-bit scales",
        partial(spqr, second_level=None),
        {"spqr": {"second_level": False}},
        SPQR_GROUP,
    ),
    Row(
        "SpQR, no outliers",
        partial(spqr, outlier_threshold=None),
        {"spqr": {"outlier_threshold": float("inf")}},
        SPQR_GROUP,
    ),
    Row("SpQR, damping 0.01", partial(spqr, percdamp=0.01), {"spqr": {"percdamp": 0.01}}, SPQR_GROUP),
]

HEAD = (
    "| method | grid | reference | loss, theirs | loss, ours | ours / theirs | levels | outliers "
    "| bits a weight | s, theirs | s, ours |"
)


def main() -> None:
    parser = argument_parser()
    args = parser.parse_args()
    try:
        programs = references(args)
        if bool(args.model) != bool(args.layer):
            raise UsageError("--model and --layer go together: a model, and which linear of it")
        awq = programs.pop("llm-awq", None)
        if awq and not args.model:
            raise UsageError(
                "--llm-awq: AWQ's scales are those of a decoder block: give --model, --layer"
            )
        if not args.model:
            return bench(args, made_layer(args), programs)
        model, windows = opened(args)
        layer = real_layer(args, model, windows)
        if args.only.lower() != "awq":
            bench(args, layer, programs)
        if awq:
            from awq_scales import table

            rules = GridRules(args.bits[0], args.awq_group)
            print(f"\nAWQ's scales of the block of {args.layer}")
            for line in table(model, args.layer, windows, rules, awq):
                print(line, flush=True)
    except QevalError as err:
        parser.exit(err.exit_code, f"{parser.prog}: {err}\n")
    return None


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made = parser.add_argument_group("a layer made of a seed")
    made.add_argument("--rows", type=int, default=64)
    made.add_argument("--columns", type=int, default=256)
    made.add_argument("--tokens", type=int, default=1024)
    made.add_argument("--heavy", type=float, default=0.0)
    made.add_argument("--seed", type=int, default=0)
    real = parser.add_argument_group("a layer of a model")
    real.add_argument("--model", help="folder or hub id")
    real.add_argument("--layer", help="its name there: model.layers.10.mlp.gate_proj")
    real.add_argument("--dataset", default="pydoc", help="calibration text (default: %(default)s)")
    real.add_argument("--data-dir", type=Path)
    real.add_argument("--n-samples", type=int, default=8)
    real.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--group", type=int, default=-1, help="-1: per channel; SpQR's are 16 always")
    parser.add_argument("--awq-group", type=int, default=64, help="group of AWQ (default: %(default)s)")
    parser.add_argument("--symmetric", action="store_true")
    parser.add_argument(
        "--only", default="", help="methods with this in their names; awq: the scales alone"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    theirs = parser.add_argument_group("reference programs")
    theirs.add_argument("--gptqmodel", action="store_true", help="the installed package")
    for name, (repository, _) in CLONES.items():
        theirs.add_argument(f"--{name}", type=Path, metavar="DIR", help=f"clone of {repository}")
    return parser


# --- The layer


@dataclass(frozen=True)
class Layer:
    title: str
    weight: Tensor  # [out, in] float32
    inputs: Tensor  # [in, tokens] float32

    @cached_property
    def exact_hessian(self) -> Tensor:
        """X X^T / tokens in float64: what every loss is computed with."""
        x = self.inputs.double()
        return x @ x.T / x.shape[1]

    @cached_property
    def hessian(self) -> Tensor:
        """The same as driver.py has it, in float32: what our solvers get."""
        return self.inputs @ self.inputs.T / self.inputs.shape[1]

    def relative_loss(self, quantized: Tensor) -> float:
        whole = loss(self.weight, torch.zeros_like(self.weight), self.exact_hessian)
        return loss(self.weight, quantized, self.exact_hessian) / whole


def made_layer(args: argparse.Namespace) -> Layer:
    """The same on every device."""
    g = torch.Generator().manual_seed(args.seed)
    mix = torch.eye(args.columns) + 0.1 * torch.randn(args.columns, args.columns, generator=g)
    x = mix @ torch.randn(args.columns, args.tokens, generator=g)
    x *= torch.randn(args.columns, 1, generator=g).exp()
    w = torch.randn(args.rows, args.columns, generator=g)
    w *= 1 + 4 * (torch.rand(args.rows, args.columns, generator=g) < args.heavy)
    title = f"seed {args.seed}, {args.rows} x {args.columns}, {args.tokens} tokens"
    heavy = f", {args.heavy:.2%} heavy weights" if args.heavy else ""
    return Layer(title + heavy, w.to(args.device), x.to(args.device))


def opened(args: argparse.Namespace) -> tuple[Any, list[list[int]]]:
    """The model in float32, and calibration windows for it.

    Raises:
        QevalError: the model or the text is missing or unfit.
    """
    from qeval.core.settings import default_cache_dir
    from qeval.data.calibration import CalibrationOptions, draw
    from qeval.data.datasets import DataSource
    from qeval.models.loading import load_model
    from qeval.models.resolve import resolve_model
    from qeval.models.tokenizer import load_tokenizer

    ref = resolve_model(args.model, dtype="float32", cache_dir=default_cache_dir())
    options = CalibrationOptions(
        dataset=args.dataset, n_samples=args.n_samples, seq_len=args.seq_len, seed=args.seed
    )
    drawn = draw(DataSource(args.data_dir), load_tokenizer(ref), options)
    return load_model(ref.path, ref.dtype, args.device), drawn.windows


def real_layer(args: argparse.Namespace, model: Any, windows: list[list[int]]) -> Layer:
    """A linear of ``model`` and what it reads while the float model runs on the windows.

    Raises:
        UsageError: no linear of that name.
    """
    from qeval.models.linears import linears

    found = {linear.name: linear for linear in linears(model)}
    if args.layer not in found:
        close = did_you_mean(args.layer, found)
        raise UsageError(f"--layer: {args.model} has no linear {args.layer}{close}")
    read: list[Tensor] = []
    linear = found[args.layer]
    hook = linear.module.register_forward_pre_hook(lambda _, x: read.append(x[0].flatten(0, -2)))
    with torch.no_grad():
        for window in windows:
            model(input_ids=torch.tensor([window], device=args.device), use_cache=False)
    hook.remove()
    weight, inputs = linear.weight.clone(), torch.cat(read).T.contiguous()
    shape = f"{weight.shape[0]} x {weight.shape[1]}"
    text = f"{args.n_samples} x {args.seq_len} tokens of {args.dataset}, seed {args.seed}"
    return Layer(f"{Path(args.model).name} {args.layer}, {shape}, {text}", weight, inputs)


# --- The table


@dataclass(frozen=True)
class Result:
    """Theirs."""

    weight: Tensor  # [out, in]
    outliers: Tensor | None  # [out, in] bool
    seconds: float


def bench(args: argparse.Namespace, layer: Layer, programs: dict[str, Reference]) -> None:
    chosen = [
        (row, GridRules(bits, row.group_size or args.group, args.symmetric))
        for bits in args.bits
        for row in ROWS
        if args.only.lower() in row.name.lower()
        and not (args.group == -1 and "static groups" in row.name)  # the same as without
    ]
    if not chosen:
        raise UsageError(f"--only: no method has {args.only!r} in its name")
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    print(f"{layer.title}; {args.device}, {versions}")
    print("; ".join(program.title for program in programs.values()) or "no reference program")
    print(f"\n{HEAD}\n|{'---|' * (HEAD.count('|') - 1)}")
    theirs = their_results(layer, chosen, programs)
    for index, (row, rules) in enumerate(chosen):
        solution, seconds = ours(row, layer, rules)
        beside: list[str | None] = [name for name in row.references if name in programs]
        for name in beside or [None]:  # None: no program to compare with
            found = theirs[name, index] if name else None
            print(table_row(row, rules, layer, name, found, solution, seconds), flush=True)


def their_results(
    layer: Layer, chosen: Sequence[tuple[Row, GridRules]], programs: dict[str, Reference]
) -> dict[tuple[str, int], Result | str]:
    """By program and index in ``chosen``; one process a program."""
    results: dict[tuple[str, int], Result | str] = {}
    for name, program in programs.items():
        wanted = [i for i, (row, _) in enumerate(chosen) if name in row.references]
        jobs = [{**vars(chosen[i][1]), **chosen[i][0].references[name]} for i in wanted]
        if jobs:
            found = program.ask(jobs=jobs, weight=layer.weight, inputs=layer.inputs)
            found = [found] * len(jobs) if isinstance(found, str) else found
            made = (x if isinstance(x, str) else Result(*x) for x in found)
            results |= {(name, i): result for i, result in zip(wanted, made, strict=True)}
    return results


def ours(row: Row, layer: Layer, rules: GridRules) -> tuple[Solution, float]:
    few = warm_up_inputs(layer.weight.shape[1], rules.group_size)
    for weight, hessian in (
        (layer.weight[:, :few], layer.hessian[:few, :few]),
        (layer.weight, layer.hessian),
    ):
        start = clock(weight.device)
        solution = row.solve(weight, hessian, rules)
        seconds = clock(weight.device) - start
    assert off_grid(solution) == 0
    return solution, seconds


def table_row(
    row: Row,
    rules: GridRules,
    layer: Layer,
    reference: str | None,
    theirs: Result | str | None,
    solution: Solution,
    seconds: float,
) -> str:
    lost = layer.relative_loss(solution.weight)
    group = "" if rules.group_size == -1 else f"g{rules.group_size}"
    first = [row.name, f"W{rules.num_bits}{group}{' sym' if rules.symmetric else ''}", reference or ""]
    our_cells = [
        str(most_levels(solution.weight, solution.group_of, solution.outliers)),
        share(solution.outliers),
        f"{bits_a_weight(solution, solution.outliers):.3f}",
    ]
    if not isinstance(theirs, Result):
        cells = [*first, theirs or "", number(lost), "", *our_cells, "", f"{seconds:.2f}"]
        return f"| {' | '.join(cells)} |"
    their_loss = layer.relative_loss(theirs.weight)
    levels = most_levels(theirs.weight, solution.group_of, theirs.outliers)
    on_grid = levels <= 2**rules.num_bits
    their_cells = [
        str(levels) if on_grid else f"**{levels}, off grid**",
        share(theirs.outliers),
        f"{bits_a_weight(solution, theirs.outliers):.3f}" if on_grid else "?",
    ]
    pairs = (
        f"{a or 0}, {b or 0}" if a or b else "" for a, b in zip(their_cells, our_cells, strict=True)
    )
    ratio = f"{lost / their_loss:.3f}" if on_grid and their_loss > 0 else ""
    losses = [number(their_loss), number(lost), ratio]
    cells = [*first, *losses, *pairs, f"{theirs.seconds:.2f}", f"{seconds:.2f}"]
    return f"| {' | '.join(cells)} |"


def most_levels(weight: Tensor, group_of: Tensor, outliers: Tensor | None) -> int:
    """The most different values of any row in any group of columns, outliers left out."""
    most = 0
    for group in range(int(group_of.max()) + 1):
        columns = weight[:, group_of == group]
        if outliers is not None:  # they become a level that is there anyway
            mask = outliers[:, group_of == group]
            columns = torch.where(mask, columns.masked_fill(mask, torch.inf).amin(1, True), columns)
        jumps = columns.sort(dim=1).values.diff(dim=1) != 0
        most = max(most, 1 + int(jumps.sum(1).max()))
    return most


def number(value: float) -> str:
    return f"{value:.4g}"


def share(outliers: Tensor | None) -> str:
    return "" if outliers is None else f"{float(outliers.float().mean()):.2%}"


def bits_a_weight(solution: Solution, outliers: Tensor | None) -> float:
    """Of our solution, had it these outliers: theirs are counted in the same format as ours."""
    size = solution.stored_bytes
    if outliers is not None and solution.outliers is not None:
        shape = (outliers.shape[0], outliers.shape[1])
        size += sparse_bytes(shape, int(outliers.sum())) - sparse_bytes(
            shape, int(solution.outliers.sum())
        )
    return 8 * size / solution.weight.numel()


if __name__ == "__main__":
    main()
