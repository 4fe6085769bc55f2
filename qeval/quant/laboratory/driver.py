"""The laboratory's driver: a model's decoder blocks are quantized one after the other.

One block is on the device at a time. The hidden states of all windows are in the model's dtype, on the
device where they take little of it, else on the host; each block reads them as the blocks before it,
already quantized, left them. For each stage (architectures.py) the inputs are captured once, as their
second moment: H = mean over tokens of x x^T [in, in], in float32 with TF32 off, shared by the linears
that read them. Each expert of a mixture has its own, of the tokens that are routed to it: in bytes on
the device, experts * in^2 * 4 (1 GB for 64 experts of 2048 inputs). A solver (solvers/) does the rest.
A finished block is kept on disk (unfinished.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qeval.core.artifact import LayerReport
from qeval.core.errors import BuildError
from qeval.core.progress import Progress
from qeval.models.architectures import Block, Group, decoder_blocks
from qeval.models.experts import experts_as_linears
from qeval.models.linears import Linear
from qeval.quant.laboratory.block_calls import Calls, Enough, map_tensors, record_calls
from qeval.quant.laboratory.solvers.base import Facts, Solution
from qeval.quant.laboratory.unfinished import Done, Unfinished

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Solve = Callable[[Tensor, Tensor], Solution]
"""weight [out, in] and H [in, in], both float32 -> the quantized layer."""

Keep = Callable[[Linear, Solution], Mapping[str, Tensor]]
"""What is to be kept of a solved layer beside its rounded weight, by name."""

_SHARE_FOR_STATES = 6  # hidden states stay on the device where they take at most a sixth of it


@dataclass(frozen=True)
class Inputs:
    """What a solver is told of the inputs of a group of linears."""

    hessian: Tensor  # mean over tokens of x x^T, [in, in] float32; I where there was no token
    n_tokens: int


@dataclass(frozen=True)
class Treatment:
    """What ``prepare`` says of one linear."""

    solve: Solve | None = None  # instead of the driver's
    note: str = ""  # for the layer's report
    lacking: str = ""  # the same, of what could not be done; the table says it, too

    def said(self) -> list[str]:
        return [text for text in (self.note, self.lacking) if text]


Prepare = Callable[[Block, "BlockRun"], Mapping[str, Treatment]]
"""What a method does to a block that is still float (transforms/) before the inputs of its linears are
measured -> how linears are to be treated, by name."""


@dataclass(frozen=True)
class LayerResult:
    report: LayerReport
    facts: Facts
    n_tokens: int  # that H was measured on
    kept: dict[str, Tensor] = field(default_factory=dict)  # what ``Keep`` returned, on the CPU
    lacking: str = ""  # of its treatment


def quantize_blocks(
    model: PreTrainedModel,
    windows: Sequence[Sequence[int]],
    solve: Solve,
    *,
    device: torch.device,
    kind: str,
    progress: Progress,
    true_sequential: bool = True,
    num_blocks: int | None = None,
    keep: Keep | None = None,
    unfinished: Unfinished | None = None,
    prepare: Prepare | None = None,
) -> list[LayerResult]:
    """Quantize the linears of ``model`` (on the CPU) in place, the first ``num_blocks`` blocks or all.

    Args:
        windows: token ids to calibrate on.
        kind: how the layers are stored, for the reports ("int4").
        true_sequential: measure each stage's inputs after the stages before it were quantized; else all
            of a block's at once, before any.
        keep: called for each layer as soon as it is solved.
        unfinished: where finished blocks are kept and found again.
        prepare: called with each block before its inputs are measured.

    Raises:
        BuildError: an architecture that is not in the table, windows longer than the model's positions,
            activations that are not finite, or what the solver refuses; with the layer's name.
    """
    results: list[LayerResult] = []
    with torch.no_grad(), full_precision(), experts_as_linears(model):
        blocks = decoder_blocks(model)[:num_blocks]
        told = _Told(progress, sum(len(block.linears) for block in blocks))
        calls = record_calls(model, [block.module for block in blocks], windows)
        _place(calls, device)
        for index, block in enumerate(blocks):
            run = BlockRun(block.module, index, calls, device)
            found = _found(unfinished.load(index), block) if unfinished else None
            done = found or []
            block.module.to(device)
            if found is None:
                treated = prepare(block, run) if prepare else {}
                for groups in block.stages if true_sequential else [sum(block.stages, ())]:
                    for group, inputs in zip(groups, run.measure(groups), strict=True):
                        for linear in group:
                            how = treated.get(linear.name, Treatment())
                            done.append(_quantize(linear, inputs, how.solve or solve, kind, keep, how))
                            told.layer(done[-1])
            else:
                told.found(done)
            if index + 1 < len(blocks):
                run.advance()
            block.module.to("cpu")
            if found is None and unfinished is not None:
                unfinished.save(index, _done(block, done))
            results.extend(done)
    return results


class _Told:
    """Progress, layer by layer."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def layer(self, result: LayerResult) -> None:
        self._done += 1
        lost = f" lost {result.facts.relative_loss:.2%}" if result.n_tokens else ""
        self._progress(self._done, self._total, f"layers, {result.report.name}{lost}")

    def found(self, results: Sequence[LayerResult]) -> None:
        self._done += len(results)
        self._progress(self._done, self._total, "layers, found done")


def _place(calls: Calls, device: torch.device) -> None:
    """Move the hidden states to a GPU that has room for them."""
    if device.type != "cuda":
        return
    size = sum(states.numel() * states.itemsize for states in calls.states)
    if size * _SHARE_FOR_STATES <= torch.cuda.get_device_properties(device).total_memory:
        calls.states = [states.to(device) for states in calls.states]


def _done(block: Block, results: Sequence[LayerResult]) -> Done:
    facts: list[dict[str, object]] = [
        {
            "report": asdict(r.report),
            "facts": asdict(r.facts),
            "n_tokens": r.n_tokens,
            "kept": list(r.kept),
            "lacking": r.lacking,
        }
        for r in results
    ]
    kept = {f"{r.report.name}/{name}": tensor for r in results for name, tensor in r.kept.items()}
    return Done(dict(block.module.state_dict()), kept, facts)


def _found(done: Done | None, block: Block) -> list[LayerResult] | None:
    """What an earlier attempt left of a block, put into it."""
    if done is None:
        return None
    block.module.load_state_dict(done.state)
    return [_result(data, done.kept) for data in done.facts]


def _result(data: dict[str, Any], kept: Mapping[str, Tensor]) -> LayerResult:
    report = LayerReport(**{**data["report"], "shape": tuple(data["report"]["shape"])})
    own = {name: kept[f"{report.name}/{name}"] for name in data["kept"]}
    return LayerResult(report, Facts(**data["facts"]), data["n_tokens"], own, data["lacking"])


@contextmanager
def full_precision() -> Iterator[None]:
    """float32 products in float32, not in TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _quantize(
    linear: Linear, inputs: Inputs, solve: Solve, kind: str, keep: Keep | None, how: Treatment
) -> LayerResult:
    weight = linear.weight.float()
    try:
        solution = solve(weight, inputs.hessian)
    except BuildError as err:
        raise BuildError(f"{linear.name}: {err}") from err
    rounded = solution.weight.to(linear.weight.dtype)
    mse = (rounded.float() - weight).square().mean().item()
    linear.weight.copy_(rounded)  # from here on a float32 layer's ``weight`` is the rounded one, too
    kept = keep(linear, solution) if keep else {}
    facts, seen = solution.facts, inputs.n_tokens > 0
    if not seen:  # H was not its own, and is no measure of a loss
        facts = replace(facts, loss=0.0, relative_loss=0.0)
    report = LayerReport(
        name=linear.name,
        shape=tuple(weight.shape),
        kind=kind,
        stored_bytes=solution.stored_bytes,
        mse=mse,
        loss=facts.loss if seen else None,
        relative_loss=facts.relative_loss if seen else None,
        outlier_share=facts.outlier_share if solution.outliers is not None else None,
        damping=facts.damping,
        note="; ".join([*how.said(), *_remarks(facts, inputs.n_tokens, weight.shape[1])]),
    )
    on_cpu = {name: tensor.cpu() for name, tensor in kept.items()}
    return LayerResult(report, facts, inputs.n_tokens, on_cpu, how.lacking)


def _remarks(facts: Facts, n_tokens: int, in_features: int) -> Iterator[str]:
    if facts.damping != facts.damping_asked:
        yield f"damping raised from {facts.damping_asked:g} to {facts.damping:g}"
    if facts.outlier_share:
        yield f"{facts.outlier_share:.2%} outliers"
    if facts.clipped_share:
        yield f"{facts.clipped_share:.0%} of the groups clipped"
    if facts.dead_columns:
        yield f"{facts.dead_columns} inputs were always 0"
    if n_tokens == 0:
        yield "no calibration token"
    elif n_tokens < in_features:
        yield f"{n_tokens} calibration tokens for {in_features} inputs"


class SecondMoment:
    """The second moment of one linear's inputs, summed window by window."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._sum: Tensor | None = None
        self.n_tokens = 0

    def add(self, inputs: Tensor) -> None:
        """``inputs`` [..., in]."""
        x = inputs.reshape(-1, inputs.shape[-1])  # [tokens, in]
        if self._sum is None:
            self._sum = torch.zeros(x.shape[1], x.shape[1], device=x.device)
        if not len(x):  # an expert that this window has nothing for
            return
        if x.is_cuda and x.dtype in (torch.bfloat16, torch.float16):
            # Products of two 16-bit floats are exact in float32: the tensor cores sum them there.
            self._sum += torch.mm(x.T, x, out_dtype=torch.float32)
        else:
            x = x.float()
            self._sum.addmm_(x.T, x)
        self.n_tokens += len(x)

    def mean(self) -> Inputs:
        """H, made of the sum in place: call it once, at the end. An expert that no token came to has
        I, for which solvers round to nearest.

        Raises:
            BuildError: with the layer's name, where an input was NaN or infinite.
        """
        assert self._sum is not None
        if not torch.isfinite(self._sum.diagonal()).all():
            raise BuildError(
                f"{self._name}: its inputs on the calibration text hold NaN or infinity; try "
                "dtype: bfloat16 or float32"
            )
        if self.n_tokens == 0:
            return Inputs(torch.eye(len(self._sum), device=self._sum.device), 0)
        return Inputs(self._sum.div_(self.n_tokens), self.n_tokens)


class BlockRun:
    """Runs one block, which is on the device, on every window."""

    def __init__(self, block: nn.Module, index: int, calls: Calls, device: torch.device) -> None:
        self._block, self._index, self._calls, self._device = block, index, calls, device
        self._moved: dict[int, Tensor] = {}  # masks and the like, on the device once

    def measure(self, groups: Sequence[Group]) -> list[Inputs]:
        """The inputs of each group; a pass ends where the last of them is known."""
        moments = [SecondMoment(group[0].name) for group in groups]
        pending: set[int] = set()
        hooks = [
            group[0].module.register_forward_pre_hook(partial(_take, moments[i], pending, i))
            for i, group in enumerate(groups)
        ]
        try:
            for window in range(len(self._calls.states)):
                pending.update(range(len(groups)))
                with suppress(Enough):
                    self._run(window)
        finally:
            for hook in hooks:
                hook.remove()
        return [m.mean() for m in moments]

    def advance(self) -> None:
        """Put the block's outputs where its inputs were."""
        for window, states in enumerate(self._calls.states):
            self._calls.states[window] = self._run(window).to(states.device)

    def _run(self, window: int) -> Tensor:
        call = self._calls.blocks[window][self._index]
        states = self._calls.states[window].to(self._device)
        args, kwargs = map_tensors((call.args, call.kwargs), self._to_device)
        out = self._block(states, *args, **kwargs)
        hidden: Tensor = out[0] if isinstance(out, tuple) else out
        return hidden

    def _to_device(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._moved:
            self._moved[id(tensor)] = tensor.to(self._device)
        return self._moved[id(tensor)]


def _take(moments: SecondMoment, pending: set[int], group: int, module: nn.Module, args: Any) -> None:
    """A hook before a group's first linear: sums its inputs; after the last group's, ends the pass."""
    moments.add(args[0])
    pending.discard(group)
    if not pending:
        raise Enough
