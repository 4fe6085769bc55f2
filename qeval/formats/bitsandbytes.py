"""bitsandbytes: LLM.int8(), NF4 and FP4. transformers loads it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from qeval.core.artifact import Format, LayerReport
from qeval.core.devices import cpu_flags
from qeval.core.errors import ModelError
from qeval.core.files import parse_json
from qeval.formats.base import HF, Candidate, FloatLayer, Library, PackedFormat, Trial
from qeval.formats.limits import Shapes, refuse_shapes
from qeval.formats.tensors import PackedModule, Stored, element_kind
from qeval.models.weights import read_data

if TYPE_CHECKING:
    import torch

_INT8 = "LLM.int8()"


@final
class BitsAndBytes(PackedFormat):
    name: ClassVar[str] = "bitsandbytes"
    extra: ClassVar[str] = "bitsandbytes"
    modules: ClassVar[tuple[str, ...]] = ("bitsandbytes",)
    quant_methods: ClassVar[tuple[str, ...]] = ("bitsandbytes",)
    suffixes: ClassVar[tuple[str, ...]] = (".SCB", ".weight.absmax")
    unmistakable: ClassVar[tuple[str, ...]] = (".SCB", ".weight.absmax")
    keeps_tensors: ClassVar[tuple[str, ...]] = ("bitsandbytes",)
    library: ClassVar[Library | None] = Library(
        "bitsandbytes", "bitsandbytes", "bitsandbytes", (*HF, "bitsandbytes")
    )

    def read(self, file: Path, config: Mapping[str, object]) -> Format:
        eight, four = bool(config.get("load_in_8bit")), bool(config.get("load_in_4bit"))
        if eight == four:
            both = "both" if eight else "neither"
            raise ModelError(f"{file}: quantization_config has {both} of load_in_4bit and load_in_8bit")
        if eight:
            return self.found(_INT8, 8, -1, True, {"threshold": config.get("llm_int8_threshold", 6.0)})
        kind = str(config.get("bnb_4bit_quant_type", "fp4"))
        double = bool(config.get("bnb_4bit_use_double_quant"))
        if kind not in ("nf4", "fp4"):
            raise ModelError(f"{file}: quantization_config.bnb_4bit_quant_type is {kind!r}: nf4 or fp4")
        details = {"type": kind, "double_quant": double}
        return self.found(kind.upper() + " double" * double, 4, 64, None, details)

    def linear(self, module: PackedModule) -> Stored:
        """weight int8 [out, in] with SCB; or uint8 [n / 2, 1] whose shape is in the JSON of
        quant_state."""
        weight = module.parts["weight"]
        if "SCB" in module.parts:
            module.floats("SCB")
        for name, part in module.parts.items():
            if ".quant_state." in name:
                state = parse_json(read_data(part), f"{part.file}: {part.name}", ModelError)
                return tuple(state["shape"]), str(state["quant_type"])
        kind = f"int{module.check_bits(8)}" if weight.dtype == "I8" else element_kind(weight)
        return weight.shape, kind

    def rounds_activations(self, found: Format) -> bool:
        return found.label == _INT8

    def check_device(self, found: Format, layers: Sequence[LayerReport], device: str) -> None:
        if device == "cpu" and found.num_bits == 4:
            shapes = {r.name: (r.shape[0], r.shape[1]) for r in layers}
            check_4bit_on_cpu(found.label, shapes)

    def trial(self, source: FloatLayer) -> Trial:
        nn = importlib.import_module("bitsandbytes.nn")
        n_out, n_in = source.weight.shape

        def nf4() -> torch.nn.Module:
            layer = nn.Linear4bit(n_in, n_out, bias=False, compute_dtype=source.dtype, quant_type="nf4")
            layer.weight = nn.Params4bit(source.weight.clone(), requires_grad=False, quant_type="nf4")
            made: torch.nn.Module = layer.to(source.device)  # quantizes
            return made

        def int8() -> torch.nn.Module:
            layer = nn.Linear8bitLt(n_in, n_out, bias=False, has_fp16_weights=False, threshold=6.0)
            layer.weight = nn.Int8Params(
                source.weight.clone(), requires_grad=False, has_fp16_weights=False
            )
            made: torch.nn.Module = layer.to(source.device)
            return made

        return Trial([Candidate("nf4", 4, nf4), Candidate("int8", 8, int8)])


def check_4bit_on_cpu(method: str, shapes: Shapes) -> None:
    """Raises UsageError for linears that bitsandbytes cannot compute with in 4 bits on this processor.
    Where it has AVX512-BF16 the library (0.50) repacks every weight for a kernel that takes whole
    blocks of 64 inputs and of 32 outputs, and dies at others; elsewhere it takes all."""
    if "avx512_bf16" not in cpu_flags():
        return
    wrong = {n: s for n, s in shapes.items() if s[0] % 32 or s[1] % 64}
    needs = "on a CPU with AVX512-BF16 inputs that are multiples of 64, outputs of 32"
    refuse_shapes(method, wrong, needs, "use a GPU, or bitsandbytes with num_bits: 8")
