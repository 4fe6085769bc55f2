"""`hqq`: half-quadratic quantization (mobiusml's HQQ): the zero points of each group are fitted to the
weights by a few cheap iterations, without calibration.

Every layer is made by the library's own HQQLinear, and saved by its own ``save_quantized`` (config.json
and qmodel.pt).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, final

from pydantic import Field

from qeval.core.artifact import Artifact, ModelRef
from qeval.core.errors import BuildError, raise_all
from qeval.core.options import Options
from qeval.quant.base import BuildContext, Method, Packages

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class HqqOptions(Options):
    num_bits: Literal[8, 4, 3, 2, 1] = 4
    group_size: int = Field(default=64, ge=8, multiple_of=8)  # weights that share a scale and a zero
    axis: Literal[0, 1] = 1  # 1: groups along the inputs; 0: across the outputs

    # Grouping along the inputs is what fast kernels take; axis 0 is a little more accurate.


@final
class Hqq(Method[HqqOptions]):
    version: ClassVar[int] = 2  # 2: routers stay floats
    Options: ClassVar[type[Options]] = HqqOptions
    scalar: ClassVar[str | None] = "num_bits"
    engine: ClassVar[str | None] = "hf"

    def label(self, options: HqqOptions) -> str:
        return f"HQQ W{options.num_bits}A16g{options.group_size}" + " axis 0" * (options.axis == 0)

    def packages(self, options: HqqOptions) -> tuple[Packages, ...]:
        return (Packages("hqq", ("torch", "transformers", "accelerate", "hqq")),)

    def simulates(self, options: HqqOptions) -> bool:
        return False

    def weight_bits(self, options: HqqOptions, dtype: str) -> float:
        return options.num_bits

    def preflight(self, options: HqqOptions, model: ModelRef) -> None:
        raise_all(lambda: self.check_packages(options), lambda: _check_shapes(options, model))

    def build(self, options: HqqOptions, context: BuildContext) -> Artifact:
        """Raises BuildError where the model has no nn.Linear layers."""
        import torch
        from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
        from hqq.models.hf.base import AutoHQQHFModel

        from qeval.models.linears import device_of, linears
        from qeval.models.loading import load_model
        from qeval.quant.libraries.finish import finish

        source = context.model
        model = load_model(source.path, source.dtype, "cpu", source.trust_remote_code)
        layers = [layer for layer in linears(model) if isinstance(layer.module, torch.nn.Linear)]
        if not layers:
            raise BuildError(f"hqq: {source.id} has no nn.Linear layer")
        config = BaseQuantizeConfig(
            nbits=options.num_bits, group_size=options.group_size, axis=options.axis
        )
        how: dict[str, object] = {
            "compute_dtype": getattr(torch, source.dtype),
            "device": str(device_of(context.device)),
        }
        for done, layer in enumerate(layers):
            model.set_submodule(layer.name, HQQLinear(layer.module, config, **how))
            context.progress(done + 1, len(layers), "layers")
        folder = context.out / "model"
        AutoHQQHFModel.cache_model(model, str(folder))
        weights = AutoHQQHFModel.serialize_weights(model) | _beside_others(model)
        AutoHQQHFModel.save_weights(weights, str(folder))
        return finish(folder, context, "hqq")


def _beside_others(model: PreTrainedModel) -> dict[str, dict[str, object]]:
    """Parameters and saved buffers of modules that hold other modules, too (a mixture's experts), by
    module: the library writes those of the innermost modules only."""
    from itertools import chain

    found: dict[str, dict[str, object]] = {}
    for name, module in model.named_modules():
        if module._modules:
            lost = module._non_persistent_buffers_set
            own = chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))
            if state := {key: tensor.detach() for key, tensor in own if key not in lost}:
                found[name] = state
    return found


def _check_shapes(options: HqqOptions, model: ModelRef) -> None:
    """Raises UsageError for a .gguf file, and for layers that the library cannot pack."""
    from qeval.formats.limits import check_no_conv1d, check_widths, refuse_shapes
    from qeval.models.weights import linear_shapes

    check_no_conv1d("hqq", model)
    group = options.group_size
    if options.axis == 1:
        check_widths("hqq", model, group)
    # A byte holds weights of 2, 4 or 8 different groups; of axis 0, of different places in a group.
    per_byte = {8: 1, 4: 2, 3: 1, 2: 4, 1: 8}[options.num_bits]
    wrong = {
        name: (out, into)
        for name, (out, into) in linear_shapes(model.path).items()
        if out * into % group or (group if options.axis == 0 else out * into // group) % per_byte
    }
    needs = f"a number of weights that {group} divides, packed {per_byte} to a byte"
    refuse_shapes("hqq", wrong, needs, "another group_size, or num_bits: 8")
