"""Which tensors of a packed checkpoint make which linear, one function a format (torch-free).

Each takes the tensors by module name and says for a linear its shape, how it is stored and all tensors
that it needs but the bias. The layouts are those of the libraries' own files; docs/formats.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qeval.core.errors import ModelError
from qeval.core.files import parse_json
from qeval.models.tensors import Contents, Tensor
from qeval.models.weights import read_data

Parts = dict[str, Tensor]  # a module's tensors by the rest of their names
_FP8 = ("F8_E4M3", "F8_E5M2")
_FLOATS = ("F32", "F16", "BF16", "F64")
_WORDS = ("I32", "U32", "I64", "I16", "I8", "U8")


@dataclass(frozen=True)
class PackedLinear:
    name: str
    shape: tuple[int, ...]  # [out_features, in_features]
    kind: str  # "int4", "nf4", "fp8"
    tensors: tuple[Tensor, ...]

    @property
    def n_bytes(self) -> int:
        return sum(t.n_bytes for t in self.tensors)

    @property
    def n_weights(self) -> int:
        return math.prod(self.shape)


def packed_linears(
    folder: Path, contents: Contents, name: str, bits: float | None, details: Mapping[str, Any]
) -> list[PackedLinear]:
    """The quantized linears of a checkpoint in the format ``name`` (``Format.name``), in file order.

    Raises:
        ModelError: there is none, a tensor of one is missing, or they are not of ``bits`` bits.
    """
    read = _READERS[name]
    found = []
    for module, parts in _modules(contents, _SUFFIXES[name]).items():
        try:
            linear = read(_Module(module, parts, contents.facts, bits, details))
        except KeyError as err:
            raise ModelError(f"{folder}: {module} lacks its tensor {err} ({name})") from err
        except (ValueError, ZeroDivisionError, IndexError, TypeError) as err:
            raise ModelError(f"{folder}: {module}: its tensors are not {name}: {err}") from err
        if linear is not None:
            found.append(PackedLinear(module, *linear, tuple(parts.values())))
    if not found:
        raise ModelError(f"{folder}: config.json says {name}, but no tensor is packed so")
    return found


@dataclass(frozen=True)
class _Module:
    name: str
    parts: Parts
    facts: Mapping[str, Any]
    bits: float | None  # None: not the same everywhere
    details: Mapping[str, Any]

    def check_bits(self, bits: int) -> int:
        """Raises ValueError where the tensors have other bits than the configuration, unless that says
        that they differ."""
        if self.bits is not None and bits != self.bits and not self.details.get("mixed"):
            raise ValueError(f"{bits} bits, where the configuration says {self.bits:g}")
        return bits


_Found = tuple[tuple[int, ...], str] | None


def _modules(contents: Contents, suffixes: tuple[str, ...]) -> dict[str, Parts]:
    """Modules that have a tensor of the format, each with all its tensors but the bias.

    ``suffixes``: the parts of which one marks a quantized module; a module's other tensors are those
    whose names go on from its name.
    """
    out: dict[str, Parts] = {
        t.name.removesuffix(suffix): {}
        for t in contents.tensors
        for suffix in suffixes
        if t.name.endswith(suffix)
    }
    for t in contents.tensors:
        stem = t.name
        while stem and stem not in out:
            stem = stem.rpartition(".")[0]
        rest = t.name[len(stem) + 1 :]
        if stem and rest != "bias":
            out[stem][rest] = t
    return out


def _gptq(m: _Module) -> _Found:
    """qweight [in * bits / 32, out], qzeros [groups, out * bits / 32], scales [groups, out], and g_idx
    [in] (not by auto-round)."""
    q, scales = m.parts["qweight"], _floats(m, "scales")
    word = _word_bits(q)
    n_out = q.shape[1]
    bits = m.check_bits(_whole(word * m.parts["qzeros"].shape[1], n_out))
    n_in = _whole(q.shape[0] * word, bits)
    index = m.parts.get("g_idx")
    if scales.shape[1] != n_out or (index is not None and index.shape != (n_in,)):
        raise ValueError("qweight, scales and g_idx are of different widths")
    return (n_out, n_in), f"int{bits}"


def _awq(m: _Module) -> _Found:
    """qweight [in, out * bits / 32], qzeros [groups, out * bits / 32], scales [groups, out]."""
    q, n_out = m.parts["qweight"], _floats(m, "scales").shape[1]
    bits = m.check_bits(_whole(_word_bits(q) * q.shape[1], n_out))
    if m.parts["qzeros"].shape[1] != q.shape[1]:
        raise ValueError("qweight and qzeros are of different widths")
    return (n_out, q.shape[0]), f"int{bits}"


def _auto_round(m: _Module) -> _Found:
    return _awq(m) if m.details["layout"] == "awq" else _gptq(m)


def _compressed(m: _Module) -> _Found:
    """weight_packed with weight_shape (int32 words), or of 4-bit floats two in a byte; else weight."""
    packed = m.parts.get("weight_packed")
    if packed is None:
        weight = m.parts["weight"]
        return weight.shape, _element_kind(weight)
    if packed.dtype == "U8":
        return (packed.shape[0], 2 * packed.shape[1]), "fp4"
    n_out, n_in = (
        int.from_bytes(read_data(m.parts["weight_shape"])[i : i + 8], "little") for i in (0, 8)
    )
    stored = _word_bits(packed) * packed.n_elements / (n_out * n_in)
    bits = max(b for b in m.details["bits"] if b <= stored)  # words may have bits that nothing uses
    return (n_out, n_in), f"int{bits}"


def _bitsandbytes(m: _Module) -> _Found:
    """weight int8 [out, in] with SCB; or uint8 [n / 2, 1] whose shape is in the JSON of quant_state."""
    weight = m.parts["weight"]
    if "SCB" in m.parts:
        _floats(m, "SCB")
    for name, part in m.parts.items():
        if ".quant_state." in name:
            state = parse_json(read_data(part), f"{part.file}: {part.name}", ModelError)
            return tuple(state["shape"]), str(state["quant_type"])
    return weight.shape, f"int{m.check_bits(8)}" if weight.dtype == "I8" else _element_kind(weight)


def _hqq(m: _Module) -> _Found:
    bits = m.facts[f"{m.name}.nbits"]
    return tuple(m.facts[f"{m.name}.shape"]), f"int{bits}"


def _torchao(m: _Module) -> _Found:
    """_weight_qdata [out, in]; where it is packed, the shape is in the metadata."""
    data = m.parts["_weight_qdata"]
    said = m.facts.get(f"{m.name}.weight", {})
    said = (json.loads(said) if isinstance(said, str) else said).get("_data", {})
    shape = tuple(said.get("shape") or data.shape)
    if shape == data.shape:
        return shape, _element_kind(data)
    return shape, f"int{m.bits or 8 * data.n_bytes // math.prod(shape):g}"


def _quanto(m: _Module) -> _Found:
    """weight._data [out, in]; of 4 and 2 bits weight._data._data, groups of inputs as rows, several
    rows in a byte. The shape [out, in] is nowhere then: [groups, group size] stands for it."""
    whole = m.parts.get("weight._data")
    if whole is not None:
        return whole.shape, "fp8" if whole.dtype in _FP8 else f"int{m.check_bits(8)}"
    packed, scale = m.parts["weight._data._data"], m.parts["weight._scale"]
    bits = m.check_bits(8 * packed.shape[0] // scale.shape[0])
    return (scale.shape[0], packed.shape[1]), f"int{bits}"


def _fp8(m: _Module) -> _Found:
    weight = m.parts.get("weight")
    return (weight.shape, "fp8") if weight is not None and weight.dtype in _FP8 else None


def _element_kind(tensor: Tensor) -> str:
    """``int8``, ``fp8``, or the float type of weights that are stored as floats."""
    if tensor.dtype in _FLOATS:
        return tensor.dtype
    return "fp8" if tensor.dtype in _FP8 else f"int{8 * tensor.n_bytes // tensor.n_elements}"


def _floats(m: _Module, part: str) -> Tensor:
    """Raises ValueError where a part that holds floats says that it is anything else."""
    tensor = m.parts[part]
    if tensor.dtype not in _FLOATS:
        raise ValueError(f"{part} is {tensor.dtype}")
    return tensor


def _word_bits(tensor: Tensor) -> int:
    """Raises ValueError where a part that holds packed integers says that it is floats."""
    if tensor.dtype not in _WORDS:
        raise ValueError(f"{tensor.name.rpartition('.')[2]} is {tensor.dtype}")
    return _whole(8 * tensor.n_bytes, tensor.n_elements)


def _whole(a: int, b: int) -> int:
    """a / b; raises ValueError where that is no whole number."""
    if a % b:
        raise ValueError(f"{a} / {b} is not whole")
    return a // b


_READERS: dict[str, Callable[[_Module], _Found]] = {
    "gptq": _gptq,
    "awq": _awq,
    "auto-round": _auto_round,
    "compressed-tensors": _compressed,
    "bitsandbytes": _bitsandbytes,
    "hqq": _hqq,
    "torchao": _torchao,
    "quanto": _quanto,
    "fp8": _fp8,
}
_SUFFIXES = {
    "gptq": (".qweight",),
    "awq": (".qweight",),
    "auto-round": (".qweight",),
    "compressed-tensors": (".weight_packed", ".weight_scale"),
    "bitsandbytes": (".SCB", ".weight.absmax"),
    "hqq": (".W_q",),
    "torchao": ("._weight_qdata",),
    "quanto": (".weight._scale",),
    "fp8": (".weight_scale_inv",),
}
