"""`rtn`: round to nearest, the baseline of every comparison of quantizers.

Every linear layer, those of a mixture's experts among them, is rounded to its own min/max grid, per
output channel or per group of inputs; routers stay floats. The result is simulated: float weights that
carry the rounding, with the packed size accounted.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, field_validator

from qeval.quant.base import Artifact, BuildContext, LayerReport, Method, Options


class RtnOptions(Options):
    num_bits: int = Field(default=4, ge=2, le=8)
    group_size: int = -1  # consecutive inputs that share a scale; -1: one scale per output channel
    symmetric: bool = False

    @field_validator("group_size")
    @classmethod
    def _positive_or_channel(cls, value: int) -> int:
        if value < 1 and value != -1:
            raise ValueError("must be a positive number of inputs, or -1 (per channel)")
        return value


class Rtn(Method):
    version: ClassVar[int] = 3  # 2: symmetric grids as GPTQ's authors have them. 3: experts
    Options: ClassVar[type[Options]] = RtnOptions
    scalar: ClassVar[str | None] = None
    in_place: ClassVar[bool] = False
    engine: ClassVar[str | None] = "hf"

    def label(self, options: RtnOptions) -> str:
        group = "" if options.group_size == -1 else f"g{options.group_size}"
        return f"RTN W{options.num_bits}A16{group}{' sym' if options.symmetric else ''}"

    def build(self, options: RtnOptions, context: BuildContext) -> Artifact:
        """Raises BuildError where the group size does not divide a layer's inputs (all are named)."""
        import torch

        from qeval.engines.loading import load_model
        from qeval.quant.affine import check_group_size
        from qeval.quant.experts import experts_as_linears
        from qeval.quant.linears import device_of, linears, save_simulated
        from qeval.quant.packing import is_router

        model = load_model(
            context.model.path, context.model.dtype, "cpu", context.model.trust_remote_code
        )
        device = device_of(context.device)
        reports = []
        with experts_as_linears(model), torch.inference_mode():
            layers = [x for x in linears(model) if not is_router(x.name)]
            check_group_size({x.name: x.weight.shape[1] for x in layers}, options.group_size)
            for i, layer in enumerate(layers):
                reports.append(round_linear(layer, options, device))
                context.progress(i + 1, len(layers), "layers")
        return save_simulated(model, context.model, context.out, reports)


def round_linear(layer: Any, options: RtnOptions, device: Any) -> LayerReport:
    from qeval.quant.affine import fake_quantize, stored_bytes

    how = (options.num_bits, options.group_size, options.symmetric)
    weight = layer.weight.to(device)
    rounded = fake_quantize(weight, *how).to(weight.dtype)
    mse = (rounded.float() - weight.float()).square().mean().item()
    layer.weight.copy_(rounded)
    shape = (weight.shape[0], weight.shape[1])
    return LayerReport(layer.name, shape, f"int{options.num_bits}", stored_bytes(shape, *how), mse)
