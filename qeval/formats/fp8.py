"""FP8 weights with a scale a block or tensor, as DeepSeek's are, on transformers' kernels for GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, final

from qeval.core.artifact import Format
from qeval.formats.base import HF, PackedFormat
from qeval.formats.tensors import FP8, PackedModule, Stored


@final
class Fp8(PackedFormat):
    name: ClassVar[str] = "fp8"
    extra: ClassVar[str] = "hf"
    modules: ClassVar[tuple[str, ...]] = HF
    quant_methods: ClassVar[tuple[str, ...]] = ("fp8",)
    suffixes: ClassVar[tuple[str, ...]] = (".weight_scale_inv",)

    def read(self, file: Path, config: Mapping[str, object]) -> Format:
        block = config.get("weight_block_size")
        activations = config.get("activation_scheme", "dynamic")
        label = "FP8 W8A8" + (f" {'x'.join(map(str, block))}" if isinstance(block, list) else "")
        return self.found(label, 8, None, True, {"block": block, "activations": activations})

    def linear(self, module: PackedModule) -> Stored | None:
        weight = module.parts.get("weight")
        return (weight.shape, "fp8") if weight is not None and weight.dtype in FP8 else None

    def rounds_activations(self, found: Format) -> bool:
        return True
