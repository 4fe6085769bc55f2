"""compressed-tensors, as llm-compressor writes it: integers in int32 words or bytes, and small floats
(FP8, NVFP4, MXFP4). transformers loads it, and unpacks each layer on its first use."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict, cast, final

from qeval.core.artifact import Format
from qeval.core.errors import ModelError
from qeval.formats.base import (
    HF,
    Candidate,
    FloatLayer,
    Library,
    PackedFormat,
    Trial,
    mapping,
    whole_number,
    wide,
)
from qeval.formats.tensors import PackedModule, Stored, element_kind, word_bits
from qeval.models.weights import read_data

if TYPE_CHECKING:
    import torch


class Details(TypedDict):
    layout: str
    bits: Sequence[int]  # of all layers, ascending
    activations: int  # bits of the layers' inputs, the fewest; 16: floats
    act_order: bool
    kv_cache: bool
    mixed: bool


@final
class CompressedTensors(PackedFormat):
    name: ClassVar[str] = "compressed-tensors"
    extra: ClassVar[str] = "compressed-tensors"
    modules: ClassVar[tuple[str, ...]] = ("compressed_tensors",)
    quant_methods: ClassVar[tuple[str, ...]] = ("compressed-tensors",)
    suffixes: ClassVar[tuple[str, ...]] = (".weight_packed", ".weight_scale")
    unmistakable: ClassVar[tuple[str, ...]] = (".weight_packed",)
    library: ClassVar[Library | None] = Library(
        "compressed-tensors",
        "compressed-tensors",
        "compressed-tensors",
        (*HF, "compressed_tensors", "llmcompressor"),
    )

    def read(self, file: Path, config: Mapping[str, object]) -> Format:
        groups = config.get("config_groups")
        if not isinstance(groups, dict) or not groups:
            raise ModelError(f"{file}: quantization_config.config_groups names no weights")
        layout = str(config.get("format"))
        sparsity = mapping(config.get("sparsity_config")).get("format", "dense")
        if sparsity not in ("dense", None) or "24" in layout or "sparse" in layout:
            raise ModelError(
                f"{file}: quantization_config.format {layout!r} is sparse: qeval runs dense ones"
            )
        weights = [mapping(mapping(g).get("weights")) for g in groups.values()]
        inputs = [mapping(mapping(g).get("input_activations")) for g in groups.values()]
        bits = sorted({whole_number(file, w, "num_bits") for w in weights})
        sizes = {_inputs_of_a_scale(w) for w in weights}
        blocks = {_block(w) for w in weights}
        kinds = {_float_kind(w) for w in weights}
        symmetric = {bool(w.get("symmetric", True)) for w in weights}
        group = next(iter(sizes)) if len(sizes) == 1 else None
        activations = min(_positive(a, "num_bits") or 16 for a in inputs)
        kind = next(iter(kinds)) if len(kinds) == 1 else "mixed"
        shown = None if kind.startswith(("NV", "MX")) else group  # their groups go with their names
        widths = wide("/".join(map(str, bits)), shown, activations)
        block = next(iter(blocks)) if len(blocks) == 1 else ""
        label = " ".join(filter(None, ("compressed-tensors", kind, widths, block)))
        details: Details = {
            "layout": layout,
            "bits": bits,
            "activations": activations,
            "act_order": any(w.get("actorder") for w in weights),
            "kv_cache": bool(config.get("kv_cache_scheme")),
            "mixed": len(bits) > 1,
        }
        return self.found(
            label + " asym" * (symmetric == {False}),
            bits[0] if len(bits) == 1 else None,
            group,
            next(iter(symmetric)) if len(symmetric) == 1 else None,
            details,
        )

    def linear(self, module: PackedModule) -> Stored:
        """weight_packed with weight_shape (int32 words), or of 4-bit floats two in a byte; else
        weight."""
        packed = module.parts.get("weight_packed")
        if packed is None:
            weight = module.parts["weight"]
            return weight.shape, element_kind(weight)
        if packed.dtype == "U8":
            return (packed.shape[0], 2 * packed.shape[1]), "fp4"
        shape = read_data(module.parts["weight_shape"])
        n_out, n_in = (int.from_bytes(shape[i : i + 8], "little") for i in (0, 8))
        stored = word_bits(packed) * packed.n_elements / (n_out * n_in)
        said = cast(Details, module.format.details)["bits"]
        bits = max(b for b in said if b <= stored)  # words may have bits that nothing uses
        return (n_out, n_in), f"int{bits}"

    def rounds_activations(self, found: Format) -> bool:
        return cast(Details, found.details)["activations"] < 16

    def trial(self, source: FloatLayer) -> Trial:
        """Compressed as a checkpoint is, and run as transformers runs it: its first call unpacks it."""
        importlib.import_module("llmcompressor")  # imports much, and is pinned to narrow versions
        layer = Candidate("W4A16_ASYM", 4, lambda: _layer(source))
        return Trial([layer], [f"llmcompressor {version('llmcompressor')}"])


def _positive(scheme: Mapping[str, object], key: str) -> int | None:
    value = scheme.get(key)
    return value if isinstance(value, int) and value > 0 else None


def _block(weights: Mapping[str, object]) -> str:
    """``128x128``: the outputs and inputs that share a scale; "" where these are no blocks."""
    block = weights.get("block_structure")
    return "x".join(map(str, block)) if isinstance(block, list) else ""


def _inputs_of_a_scale(weights: Mapping[str, object]) -> int | None:
    """The group size; -1 for a scale an output channel, None for one a block or tensor."""
    if weights.get("strategy") in ("block", "tensor"):
        return None
    return _positive(weights, "group_size") or -1


def _float_kind(weights: Mapping[str, object]) -> str:
    """ "" for integers, else FP8, NVFP4, MXFP4, ..."""
    if weights.get("type", "int") != "float":
        return ""
    bits = weights.get("num_bits")
    if bits == 4 or weights.get("group_size") == 32:
        return ("NVFP" if weights.get("group_size") == 16 else "MXFP") + str(bits)
    return f"FP{bits}"


def _layer(source: FloatLayer) -> torch.nn.Module:
    import torch
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
    from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme
    from compressed_tensors.quantization.utils import calculate_qparams

    linear: Any = source.linear(source.device)
    model = torch.nn.Sequential(linear)
    scheme = preset_name_to_scheme("W4A16_ASYM", ["Linear"])
    apply_quantization_config(model, QuantizationConfig(config_groups={"group_0": scheme}))
    groups = linear.weight.unflatten(1, (-1, source.group_size))
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), scheme.weights)
    linear.weight_scale.data.copy_(scale)
    linear.weight_zero_point.data.copy_(zero)
    ModelCompressor.from_pretrained_model(model).compress_model(model)
    return model
