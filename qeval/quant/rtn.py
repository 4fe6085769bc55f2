"""`rtn`: round to nearest, the baseline of every comparison of quantizers.

Every linear layer, those of a mixture's experts among them, is rounded to its own min/max grid, per
output channel or per group of inputs; routers stay floats. The result is simulated: float weights that
carry the rounding, with the packed size accounted; with ``format: gptq`` it is packed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, final

from qeval.core.artifact import Artifact, LayerReport
from qeval.core.options import Options
from qeval.quant.base import BuildContext
from qeval.quant.laboratory.base import (
    Format,
    LaboratoryMethod,
    PackableOptions,
    gptq_config,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class RtnOptions(PackableOptions):
    format: Format = "simulated"


@final
class Rtn(LaboratoryMethod[RtnOptions]):
    name: ClassVar[str] = "rtn"
    version: ClassVar[int] = 4  # 2: symmetric grids as GPTQ's authors have them. 3: experts. 4: routers
    Options: ClassVar[type[Options]] = RtnOptions
    scalar: ClassVar[str | None] = "num_bits"

    def label(self, options: RtnOptions) -> str:
        packed = " packed" if options.format == "gptq" else ""
        return f"RTN {options.bits_label()}{' sym' if options.symmetric else ''}{packed}"

    def build(self, options: RtnOptions, context: BuildContext) -> Artifact:
        """Raises BuildError where the group size does not divide a layer's inputs (all are named), and
        where a linear is to be packed outside of the decoder blocks."""
        import torch

        from qeval.formats.affine import check_group_size
        from qeval.models.experts import experts_as_linears
        from qeval.models.linears import device_of, linears, save_simulated
        from qeval.models.loading import load_model
        from qeval.quant.laboratory.gptq_format import check_in_blocks, save_gptq

        model = load_model(
            context.model.path, context.model.dtype, "cpu", context.model.trust_remote_code
        )
        device, gptq = device_of(context.device), gptq_config(options)
        reports, packed = [], {}
        with experts_as_linears(model), torch.inference_mode():
            layers = list(linears(model))
            check_group_size({x.name: x.weight.shape[1] for x in layers}, options.group_size)
            if gptq is not None:
                check_in_blocks(model, [x.name for x in layers])
            for i, layer in enumerate(layers):
                report, packed[layer.name] = round_linear(layer, options, device)
                reports.append(report)
                context.progress(i + 1, len(layers), "layers")
        if gptq is None:
            return save_simulated(model, context.model, context.out, reports)
        return save_gptq(model, context, gptq, packed, reports)


def round_linear(
    layer: Any, options: RtnOptions, device: torch.device
) -> tuple[LayerReport, dict[str, Tensor]]:
    """Round a layer in place: its report, and with ``format: gptq`` what is stored of it."""
    from qeval.formats.affine import dequantize, fit_grid, quantize, stored_bytes
    from qeval.quant.laboratory.gptq_format import pack_gptq
    from qeval.quant.laboratory.solvers.base import consecutive

    how = (options.num_bits, options.group_size, options.symmetric)
    weight = layer.weight.to(device)
    grid = fit_grid(weight, *how)
    rounded, packed = dequantize(quantize(weight, grid), grid), {}
    if options.format == "gptq":
        n = weight.shape[1]
        packed = pack_gptq(rounded, grid, consecutive(n, n // grid.scale.shape[1], device))
    rounded = rounded.to(weight.dtype)
    mse = (rounded.float() - weight.float()).square().mean().item()
    layer.weight.copy_(rounded)
    shape = (weight.shape[0], weight.shape[1])
    report = LayerReport(layer.name, shape, f"int{options.num_bits}", stored_bytes(shape, *how), mse)
    return report, packed
