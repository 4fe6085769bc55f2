"""`smoothquant`: SmoothQuant (arXiv 2211.10438): norms share outliers with the weights.

A transform of the float model (transforms/smoothquant.py), then any of the laboratory's solvers on the
weights. The paper's W8A8 also rounds the activations: ``activations: {num_bits: 8, symmetric: true}``
beside this method. Its alphas: 0.5 (OPT, BLOOM), 0.85 (Llama 2), 0.8 (Mistral), 0.6 (Falcon).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from pydantic import Field

from qeval.core.artifact import Artifact
from qeval.core.options import Options
from qeval.quant.base import BuildContext
from qeval.quant.laboratory.base import CalibratedMethod, Format, PackableOptions, gptq_config
from qeval.quant.laboratory.method import LaboratoryOptions, build

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from qeval.quant.laboratory.driver import Prepare, Solve

_WITH = {"rtn": "", "gptq": "+GPTQ", "quantease": "+QuantEase"}


class SmoothQuantOptions(LaboratoryOptions, PackableOptions):
    num_bits: int = Field(default=8, ge=2, le=8)
    symmetric: bool = True
    alpha: float = Field(default=0.5, ge=0, le=1)  # 0: evens out the weights, 1: the inputs
    solver: Literal["rtn", "gptq", "quantease"] = "rtn"  # of the weights, each with its defaults
    format: Format = "simulated"


@final
class SmoothQuant(CalibratedMethod[SmoothQuantOptions]):
    name: ClassVar[str] = "smoothquant"
    version: ClassVar[int] = 1
    Options: ClassVar[type[Options]] = SmoothQuantOptions
    scalar: ClassVar[str | None] = "alpha"

    def label(self, options: SmoothQuantOptions) -> str:
        strength = "" if options.alpha == 0.5 else f" {options.alpha:g}"
        grid = options.bits_label() + options.blocks_label() + " asym" * (not options.symmetric)
        packed = " packed" if options.format == "gptq" else ""
        return f"SmoothQuant{strength}{_WITH[options.solver]} {grid}{packed}"

    def build(self, options: SmoothQuantOptions, context: BuildContext) -> Artifact:
        """Raises BuildError for an unknown architecture, for one whose norms take no scale, and for
        activations that are not finite."""
        from qeval.quant.laboratory.transforms.smoothquant import Smoothing, input_maxima

        def transform(model: PreTrainedModel, windows: Any, device: torch.device) -> Prepare:
            maxima = input_maxima(
                model,
                windows,
                device=device,
                progress=context.progress,
                num_blocks=options.num_blocks,
            )
            return Smoothing(maxima, options.alpha)

        return build(context, solver(options), options, gptq=gptq_config(options), transform=transform)


def solver(options: SmoothQuantOptions) -> Solve:
    """What the options ask for, as a function of a layer's weight and Hessian."""
    from functools import partial

    from qeval.quant.laboratory.solvers.base import GridRules
    from qeval.quant.laboratory.solvers.gptq import gptq
    from qeval.quant.laboratory.solvers.quantease import quantease
    from qeval.quant.laboratory.solvers.rtn import rtn

    solvers: dict[str, Any] = {"rtn": rtn, "gptq": gptq, "quantease": quantease}
    rules = GridRules(options.num_bits, options.group_size, options.symmetric)
    return partial(solvers[options.solver], rules=rules)
