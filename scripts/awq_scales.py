"""AWQ's scales of one decoder block, the laboratory's beside llm-awq's: a table of bench_quantizers.py.

Both search on the same float block and the same inputs (the laboratory's inspects attention and MLP on
the first 4,096 tokens of them). A scale is s = m^r, m = mean |x|, to a factor; r is fitted to what was
found. Loss: of the linears that read the scaled input, rounded to nearest with that scale, no clipping:
the sum of tr((W-Q) H (W-Q)^T) over that of tr(W H W^T), Q = Q(W s)/s. Seconds: theirs of the search,
ours also of reading the inputs and of folding the scales in.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from reference_quantizers import Reference, clock
from torch import Tensor

from qeval.formats.affine import fake_quantize
from qeval.models.architectures import Block, Feed, decoder_blocks
from qeval.quant.laboratory.block_calls import record_calls
from qeval.quant.laboratory.driver import BlockRun, full_precision
from qeval.quant.laboratory.solvers.base import GridRules, loss
from qeval.quant.laboratory.transforms.awq import AwqScales

HEAD = (
    "| read by | grid | ratio, theirs | ratio, ours | scales differ by | RTN loss, none "
    "| loss, theirs | loss, ours |"
)


@torch.no_grad()
def table(
    model: Any, layer: str, windows: list[list[int]], rules: GridRules, program: Reference
) -> Iterator[str]:
    """The lines of the table. ``layer`` names a linear of the block; its weights are changed."""
    model.to("cpu")  # the driver's way: a model on the host, one block at a time elsewhere
    block = next(b for b in decoder_blocks(model) if layer in {x.name for x in b.linears})
    calls = record_calls(model, [block.module], windows)
    names = {module: name for name, module in block.module.named_modules()}
    run = BlockRun(block.module, 0, calls, torch.device("cpu"))
    with full_precision():
        inputs = inputs_of(block, run)
        theirs = program.ask(
            block=deepcopy(block.module),
            kwargs=calls.blocks[0][0].kwargs,
            inputs={names[module]: x for module, x in inputs.items()},
            num_bits=rules.num_bits,
            group_size=rules.group_size,
        )
        if isinstance(theirs, str):
            yield f"{program.title}: {theirs}"
            return
        before = {x.name: x.weight.clone() for feed in block.feeds for x in feed.readers}
        start = clock(torch.device("cpu"))
        AwqScales(rules)(block, run)
        seconds = clock(torch.device("cpu")) - start
    found, their_seconds = theirs
    yield f"{program.title}; {their_seconds:.2f} s theirs, {seconds:.2f} s ours"
    yield f"\n{HEAD}\n|{'---|' * (HEAD.count('|') - 1)}"
    for feed in block.feeds:
        first = feed.readers[0]
        scales = [found.get(names[first.module]), folded(before[first.name], first.weight)]
        yield row(feed, names[first.module], before, inputs[first.module], rules, scales)


def inputs_of(block: Block, run: BlockRun) -> dict[Any, Tensor]:
    """What every linear of the block reads: [windows, tokens, in], by module."""
    read: dict[Any, list[Tensor]] = {}
    hooks = [
        x.module.register_forward_pre_hook(lambda m, given: read.setdefault(m, []).append(given[0]))
        for x in block.linears
    ]
    run.measure(block.stages[-1])  # one pass
    for hook in hooks:
        hook.remove()
    return {module: torch.cat(list(x)) for module, x in read.items()}


def folded(before: Tensor, after: Tensor) -> Tensor:
    """The scale [in] that a weight [out, in] was multiplied by, from its largest entries."""
    largest = before.abs().argmax(dim=0, keepdim=True)
    return (after.gather(0, largest) / before.gather(0, largest))[0]


def row(
    feed: Feed,
    name: str,
    before: dict[str, Tensor],
    inputs: Tensor,
    rules: GridRules,
    scales: list[Tensor | None],
) -> str:
    x = inputs.flatten(0, -2)  # [tokens, in]
    hessian = (x.T.double() @ x.double()) / len(x)
    magnitude = x.abs().mean(0)
    ours = scales[1]
    assert ours is not None
    plain = torch.ones_like(ours)
    weights = [before[linear.name] for linear in feed.readers]
    losses = ["" if s is None else f"{lost(weights, s, hessian, rules):.4g}" for s in (plain, *scales)]
    ratios = ["" if s is None else f"{ratio(s, magnitude):.2f}" for s in scales]
    gap = "" if scales[0] is None else f"{float((scales[0] / ours - 1).abs().max()):.1e}"
    readers = ", ".join([name, *(x.name.rpartition(".")[2] for x in feed.readers[1:])])
    return (
        f"| {' | '.join([readers, f'W{rules.num_bits}g{rules.group_size}', *ratios, gap, *losses])} |"
    )


def ratio(scale: Tensor, magnitude: Tensor) -> float:
    """r of s = c m^r, by least squares on logarithms."""
    x, y = magnitude.log(), scale.log()
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / x.square().sum())


def lost(weights: list[Tensor], scale: Tensor, hessian: Tensor, rules: GridRules) -> float:
    grid = (rules.num_bits, rules.group_size, rules.symmetric)
    rounded = [fake_quantize(w * scale, *grid) / scale for w in weights]
    whole = sum(loss(w, torch.zeros_like(w), hessian) for w in weights)
    return sum(loss(w, q, hessian) for w, q in zip(weights, rounded, strict=True)) / whole
