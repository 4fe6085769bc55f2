"""What the laboratory's methods share: options, and the way from a solver to a simulated artifact.

The methods differ in the solver alone: same driver (driver.py), same calibration, same grids, so that
their rows can be compared with nothing else changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING

from pydantic import Field

from qeval.core.artifact import Artifact
from qeval.data.calibration import CalibrationOptions
from qeval.quant.base import BuildContext
from qeval.quant.laboratory.base import CalibratedOptions

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from qeval.quant.laboratory.driver import LayerResult, Prepare, Solve

    Transform = Callable[[PreTrainedModel, Sequence[Sequence[int]], torch.device], Prepare]
    """A float model (on the CPU), the calibration's windows, the device -> the driver's ``prepare``."""


class LaboratoryOptions(CalibratedOptions):
    true_sequential: bool = True  # q, k, v; then o; then gate, up; then down
    num_blocks: int | None = Field(default=None, ge=1)  # the first n decoder blocks only

    def grid_label(self) -> str:
        """``W4A16g128``, ``W3A16 sym``, ``W4A16 first 2 blocks``."""
        return f"{self.bits_label()}{' sym' if self.symmetric else ''}{self.blocks_label()}"

    def blocks_label(self) -> str:
        return "" if self.num_blocks is None else f" first {self.num_blocks} blocks"


def build(
    context: BuildContext,
    solve: Solve,
    options: LaboratoryOptions,
    *,
    gptq: dict[str, object] | None = None,
    transform: Transform | None = None,
) -> Artifact:
    """``quantize`` as the options say."""
    return quantize(
        context,
        solve,
        options.calibration,
        num_bits=options.num_bits,
        true_sequential=options.true_sequential,
        num_blocks=options.num_blocks,
        gptq=gptq,
        transform=transform,
    )


def quantize(
    context: BuildContext,
    solve: Solve,
    calibration: CalibrationOptions,
    *,
    num_bits: int,
    true_sequential: bool,
    num_blocks: int | None = None,
    gptq: dict[str, object] | None = None,
    transform: Transform | None = None,
) -> Artifact:
    """Quantize ``context.model`` with a solver, block by block, and save the rounded float weights; or,
    with ``gptq`` (base.gptq_config), a packed checkpoint.

    Raises:
        BuildError: what driver.py and the solvers refuse, with the layer's name.
    """
    from qeval.models.linears import device_of, save_simulated
    from qeval.models.loading import load_model
    from qeval.quant.laboratory.driver import quantize_blocks
    from qeval.quant.laboratory.gptq_format import pack_gptq, save_gptq
    from qeval.quant.laboratory.unfinished import Unfinished

    ref = context.model
    model = load_model(ref.path, ref.dtype, "cpu", ref.trust_remote_code)
    drawn = context.calibration(calibration)
    device = device_of(context.device)
    results = quantize_blocks(
        model,
        drawn.windows,
        solve,
        device=device,
        kind=f"int{num_bits}",
        progress=context.progress,
        true_sequential=true_sequential,
        num_blocks=num_blocks,
        keep=None if gptq is None else lambda _, s: pack_gptq(s.weight, s.grid, s.group_of),
        unfinished=Unfinished(context.unfinished) if context.unfinished else None,
        prepare=transform(model, drawn.windows, device) if transform else None,
    )
    reports, notes = [r.report for r in results], tuple(_notes(results, num_blocks))
    if gptq is None:
        artifact = save_simulated(model, ref, context.out, reports, notes)
    else:
        packed = {r.report.name: r.kept for r in results}
        artifact = save_gptq(model, context, gptq, packed, reports, notes)
    details = {**artifact.details, "layers": summary(results)}
    return replace(artifact, calibration=drawn.facts, details=details)


def summary(results: Sequence[LayerResult]) -> dict[str, object]:
    """Over all layers: relative losses of their outputs (of those that saw calibration tokens), and the
    outliers' share of the weights; of a mixture, how many tokens its experts saw."""
    seen = [r for r in results if r.n_tokens]
    worst = max(seen, key=lambda r: r.facts.relative_loss)
    sizes = [r.report.shape[0] * r.report.shape[1] for r in results]
    kept = sum(r.facts.outlier_share * n for r, n in zip(results, sizes, strict=True))
    tokens = sorted(layers[0].n_tokens for layers in _experts(results).values())
    of_experts = {"fewest": tokens[0], "median": median(tokens), "most": tokens[-1]} if tokens else None
    return {
        "mean_relative_loss": sum(r.facts.relative_loss for r in seen) / len(seen),
        "worst_relative_loss": worst.facts.relative_loss,
        "worst_layer": worst.report.name,
        "outlier_share": kept / sum(sizes),
        **({"tokens_of_experts": of_experts} if of_experts else {}),
    }


def _notes(results: Sequence[LayerResult], num_blocks: int | None) -> list[str]:
    """What a reader of the table must know of the layers."""
    from qeval.models.experts import expert_of

    raised = [r for r in results if r.facts.damping != r.facts.damping_asked]
    few = [r for r in results if _few(r) and expert_of(r.report.name) is None]
    lacking = {what: [r for r in results if r.lacking == what] for what in _distinct(results)}
    said = lacking | {
        f"no Cholesky factor of the Hessian: damping raised (to {_most(raised):g} at most)": raised,
        "fewer calibration tokens than inputs": few,
    }
    notes = [f"{_layers(found)}: {what}" for what, found in said.items() if found]
    notes.extend(_of_experts(results))
    if num_blocks is not None:
        notes.append(f"only the first {num_blocks} decoder blocks are quantized")
    return notes


def _of_experts(results: Sequence[LayerResult]) -> Iterator[str]:
    """How many experts of a mixture were calibrated on too few tokens, or on none."""
    each = _experts(results)
    few = sum(any(map(_few, layers)) for layers in each.values())
    none = sum(layers[0].n_tokens == 0 for layers in each.values())
    if few:
        yield f"{few} of {len(each)} experts saw fewer calibration tokens than they have inputs" + (
            f"; {none} of these saw none: quantized by their weights alone" if none else ""
        )


def _experts(results: Sequence[LayerResult]) -> dict[tuple[str, int], list[LayerResult]]:
    """Each expert's linears; all of them saw the same tokens."""
    from qeval.models.experts import expert_of

    each: dict[tuple[str, int], list[LayerResult]] = {}
    for result in results:
        if (expert := expert_of(result.report.name)) is not None:
            each.setdefault(expert, []).append(result)
    return each


def _few(result: LayerResult) -> bool:
    return result.n_tokens < result.report.shape[1]


def _distinct(results: Sequence[LayerResult]) -> list[str]:
    return list(dict.fromkeys(r.lacking for r in results if r.lacking))


def _most(raised: Sequence[LayerResult]) -> float:
    return max((r.facts.damping or 0.0 for r in raised), default=0.0)


def _layers(found: Sequence[LayerResult]) -> str:
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return f"{found[0].report.name}{more}"
