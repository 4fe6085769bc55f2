"""torchao: tensors of classes of its own, in safetensors or pickled. transformers loads it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypedDict, cast, final

from qeval.core.artifact import Format
from qeval.core.errors import ModelError
from qeval.formats.base import HF, Candidate, FloatLayer, Library, PackedFormat, Trial, mapping
from qeval.formats.tensors import PackedModule, Stored, element_kind

if TYPE_CHECKING:
    import torch

_SCHEMES = {  # class of its configuration -> the name of the scheme, bits
    "Int8WeightOnlyConfig": ("int8wo", 8),
    "Int8DynamicActivationInt8WeightConfig": ("int8dyn", 8),
    "Int4WeightOnlyConfig": ("int4wo", 4),
    "Float8WeightOnlyConfig": ("fp8wo", 8),
    "Float8DynamicActivationFloat8WeightConfig": ("fp8dyn", 8),
}


class Details(TypedDict):
    type: str  # the class of its configuration
    granularity: object  # the name of a class, or None


@final
class TorchAo(PackedFormat):
    name: ClassVar[str] = "torchao"
    extra: ClassVar[str] = "torchao"
    modules: ClassVar[tuple[str, ...]] = ("torchao",)
    quant_methods: ClassVar[tuple[str, ...]] = ("torchao",)
    suffixes: ClassVar[tuple[str, ...]] = ("._weight_qdata",)
    unmistakable: ClassVar[tuple[str, ...]] = ("._weight_qdata",)
    library: ClassVar[Library | None] = Library("torchao", "torchao", "torchao", (*HF, "torchao"))

    def read(self, file: Path, config: Mapping[str, object]) -> Format:
        quant_type = config.get("quant_type")
        inner = mapping(mapping(quant_type).get("default", quant_type))
        kind, data = inner.get("_type"), mapping(inner.get("_data"))
        if not isinstance(kind, str):
            raise ModelError(
                f"{file}: quantization_config.quant_type is {quant_type!r}: from before torchao's "
                "configurations; save the model again with torchao 0.10 or later"
            )
        scheme, bits = _SCHEMES.get(kind, (kind.removesuffix("Config"), None))
        named = str(mapping(data.get("weight_dtype")).get("_data", ""))
        if bits is None and named.startswith(("int", "uint")):
            bits = int(named.lstrip("uint"))
            scheme = f"{scheme} {named}"
        grain = mapping(data.get("granularity"))
        groups = (data.get("group_size"), mapping(grain.get("_data")).get("group_size"))
        group = next((g for g in groups if isinstance(g, int) and g), -1)
        label = f"torchao {scheme}" + (f" g{group}" if group > 0 else "")
        details: Details = {"type": kind, "granularity": grain.get("_type")}
        return self.found(label, bits, group, None, details)

    def linear(self, module: PackedModule) -> Stored:
        """_weight_qdata [out, in]; where it is packed, the shape is in the metadata."""
        data = module.parts["_weight_qdata"]
        said = module.facts.get(f"{module.name}.weight")
        said = json.loads(said) if isinstance(said, str) else said
        written = mapping(mapping(said).get("_data")).get("shape")
        shape = tuple(cast(Sequence[int], written)) if written else data.shape
        if shape == data.shape:
            return shape, element_kind(data)
        bits = module.format.num_bits or 8 * data.n_bytes // math.prod(shape)
        return shape, f"int{bits:g}"

    def rounds_activations(self, found: Format) -> bool:
        return "DynamicActivation" in cast(Details, found.details)["type"]

    def trial(self, source: FloatLayer) -> Trial:
        import torchao.quantization as q

        def candidate(name: str, num_bits: int, config: Callable[[], object]) -> Candidate:
            def make() -> torch.nn.Module:
                import torch

                model = torch.nn.Sequential(source.linear(source.device))
                q.quantize_(model, config())
                return model

            return Candidate(name, num_bits, make)

        candidates = [
            candidate("int8wo", 8, lambda: q.Int8WeightOnlyConfig(granularity=q.PerRow())),
            candidate("int8dyn", 8, q.Int8DynamicActivationInt8WeightConfig),
        ]
        if source.device.type == "cuda":  # the CPU has no kernel of it
            group, tiled = source.group_size, "tile_packed_to_4d"
            candidates.append(
                candidate("int4wo", 4, lambda: q.Int4WeightOnlyConfig(group, int4_packing_format=tiled))
            )
        return Trial(candidates)
