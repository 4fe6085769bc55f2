"""`quanto`: Hugging Face's optimum-quanto: symmetric per-channel int8 and float8, group-wise int4 and
int2; no calibration.

The library chooses the groups of int4 and int2: 128 inputs, less where that does not divide a layer's
inputs. The artifact says which came out.
"""

from __future__ import annotations

import glob
from dataclasses import replace
from functools import partial
from typing import ClassVar, Literal, final

from qeval.core.artifact import Artifact, ModelRef
from qeval.core.errors import BuildError, raise_all
from qeval.core.options import Options
from qeval.quant.base import BuildContext, Method, Packages

_NAMES = {"int8": "W8A16", "int4": "W4A16", "int2": "W2A16", "float8": "FP8 W8A16"}


class QuantoOptions(Options):
    weights: Literal["int8", "int4", "int2", "float8"] = "int8"


@final
class Quanto(Method[QuantoOptions]):
    version: ClassVar[int] = 2  # 2: routers stay floats
    Options: ClassVar[type[Options]] = QuantoOptions
    scalar: ClassVar[str | None] = "weights"
    engine: ClassVar[str | None] = "hf"

    def label(self, options: QuantoOptions) -> str:
        return f"quanto {_NAMES[options.weights]}"

    def packages(self, options: QuantoOptions) -> tuple[Packages, ...]:
        return (
            Packages("quanto", ("torch", "transformers", "accelerate", "optimum", "optimum.quanto")),
        )

    def simulates(self, options: QuantoOptions) -> bool:
        return False

    def weight_bits(self, options: QuantoOptions, dtype: str) -> float:
        return {"int2": 2, "int4": 4}.get(options.weights, 8)

    def preflight(self, options: QuantoOptions, model: ModelRef) -> None:
        from qeval.formats.limits import check_no_conv1d

        raise_all(lambda: self.check_packages(options), lambda: check_no_conv1d("quanto", model))

    def build(self, options: QuantoOptions, context: BuildContext) -> Artifact:
        """Raises BuildError where the library finds nothing to quantize."""
        from optimum.quanto import QuantizedModelForCausalLM

        from qeval.models.linears import device_of, head_name, router_names
        from qeval.models.loading import load_model
        from qeval.quant.libraries.finish import finish

        source = context.model
        model = load_model(
            source.path, source.dtype, device_of(context.device), source.trust_remote_code
        )
        left = [*router_names(model), *filter(None, [head_name(model)])]
        try:
            quantized = QuantizedModelForCausalLM.quantize(
                model, weights=f"q{options.weights}", exclude=[glob.escape(name) for name in left]
            )
        except ValueError as err:
            raise BuildError(f"quanto cannot quantize {source.id}: {err}") from err
        folder = context.out / "model"
        # Under the model's own names, by which the library loads: transformers would go back to those
        # of the original checkpoint, where the architecture has others there (GPT-NeoX, mixtures).
        model.save_pretrained = partial(model.save_pretrained, save_original_format=False)
        quantized.save_pretrained(folder)
        artifact = finish(folder, context, "optimum-quanto")
        group = artifact.format.group_size if artifact.format else None
        if options.weights in ("int4", "int2") and group != 128:
            chosen = "a group size of its own for each layer" if group is None else f"groups of {group}"
            note = f"quanto chose {chosen}: 128 does not divide the inputs of every layer"
            return replace(artifact, notes=(*artifact.notes, note))
        return artifact
