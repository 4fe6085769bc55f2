"""SmoothQuant's scales (arXiv 2211.10438, section 4, equation 4).

    s_j = max|x_j|^alpha / max_i |w_ij|^(1 - alpha)
for every norm and the linears that read it, and for no other operation; nor for a norm that a mixture's
router reads, too. x are the float model's inputs of those linears on all calibration tokens: one pass
over the blocks, before anything is rounded. Both maxima are at least 1e-5, as in the authors' program;
an input that was always 0 keeps s = 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qeval.core.errors import BuildError
from qeval.core.progress import Progress
from qeval.models.architectures import ROUTED, Block, Feed, decoder_blocks
from qeval.models.experts import experts_as_linears
from qeval.quant.laboratory.block_calls import record_calls
from qeval.quant.laboratory.driver import BlockRun, Treatment, full_precision
from qeval.quant.laboratory.transforms.scaling import column_maxima, fold

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SMALLEST = 1e-5


def smoothing_scale(inputs: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """s [channels] of max|x_j| and max|w_j|, both [channels] float32."""
    scale = inputs.clamp(min=_SMALLEST).pow(alpha) / weights.clamp(min=_SMALLEST).pow(1 - alpha)
    return torch.where(inputs == 0, 1.0, scale.clamp(min=_SMALLEST))


def input_maxima(
    model: PreTrainedModel,
    windows: Sequence[Sequence[int]],
    *,
    device: torch.device,
    progress: Progress,
    num_blocks: int | None = None,
) -> dict[str, Tensor]:
    """max |x_j| over all tokens, [channels] float32 on the CPU, by the name of the first linear that
    reads the norm; of the float ``model`` (on the CPU), which is left as it is.

    Raises:
        BuildError: no norm can take a scale; an input was NaN or infinite, with the linear's name;
            and as ``quantize_blocks``.
    """
    maxima: dict[str, Tensor] = {}
    with torch.no_grad(), full_precision(), experts_as_linears(model):
        blocks = decoder_blocks(model)[:num_blocks]
        _check_norms(blocks)
        calls = record_calls(model, [block.module for block in blocks], windows)
        for index, block in enumerate(blocks):
            block.module.to(device)
            names = [(x.readers[0].name, x.readers[0].module) for x in block.feeds if x.is_norm]
            hooks = [m.register_forward_pre_hook(partial(_widen, maxima, name)) for name, m in names]
            try:
                BlockRun(block.module, index, calls, device).advance()
            finally:
                for hook in hooks:
                    hook.remove()
            for name, _ in names:
                maxima[name] = _finite(name, maxima[name].cpu())
            block.module.to("cpu")
            progress(index + 1, len(blocks), "blocks measured")
    return maxima


def _check_norms(blocks: Sequence[Block]) -> None:
    if not any(feed.is_norm for block in blocks for feed in block.feeds):
        why = ", ".join(sorted(set(blocks[0].unfed.values())))
        raise BuildError(
            f"no norm of this model can take a scale ({why}): quantize it without smoothquant"
        )


def _widen(maxima: dict[str, Tensor], name: str, module: nn.Module, args: Any) -> None:
    """A hook before a linear: takes the largest of its inputs."""
    largest = args[0].flatten(0, -2).float().abs().amax(dim=0)
    maxima[name] = torch.maximum(maxima[name], largest) if name in maxima else largest


def _finite(name: str, maxima: Tensor) -> Tensor:
    if not torch.isfinite(maxima).all():
        raise BuildError(
            f"{name}: its inputs on the calibration text hold NaN or infinity; try dtype: bfloat16 or "
            "float32"
        )
    return maxima


@dataclass(frozen=True)
class Smoothing:
    """The driver's ``prepare``: folds the scales into a block's norms."""

    maxima: Mapping[str, Tensor]  # of ``input_maxima``
    alpha: float

    def __call__(self, block: Block, run: BlockRun) -> dict[str, Treatment]:
        smoothed = [feed for feed in block.feeds if feed.is_norm]
        for feed in smoothed:
            fold(feed, self.scale(feed))
        told = {x.name: Treatment(note="smoothed") for feed in smoothed for x in feed.readers}
        routed = [name for name, why in block.unfed.items() if why == ROUTED]
        return told | dict.fromkeys(routed, Treatment(lacking=f"not smoothed: {ROUTED}"))

    def scale(self, feed: Feed) -> Tensor:
        weights = column_maxima(feed)
        inputs = self.maxima[feed.readers[0].name].to(weights.device)
        return smoothing_scale(inputs, weights, self.alpha)
