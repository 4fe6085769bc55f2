"""The tensors of one packed module, and what several formats read in them (torch-free).

The layouts are those of the libraries' own files; docs/formats.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qeval.core.artifact import Format
from qeval.models.tensors import Tensor

FP8 = ("F8_E4M3", "F8_E5M2")
_FLOATS = ("F32", "F16", "BF16", "F64")
_WORDS = ("I32", "U32", "I64", "I16", "I8", "U8")

Stored = tuple[tuple[int, ...], str]
"""A packed linear: its shape [out_features, in_features], and how it is stored ("int4", "nf4")."""


@dataclass(frozen=True)
class PackedModule:
    """A quantized module as its files have it."""

    name: str
    parts: Mapping[str, Tensor]  # all its tensors but the bias, by the rest of their names
    facts: Mapping[str, object]  # of the whole checkpoint (models.tensors.Contents)
    format: Format

    def check_bits(self, bits: int) -> int:
        """Raises ValueError where the tensors have other bits than the configuration, unless that says
        that they differ."""
        said = self.format.num_bits
        if said is not None and bits != said and not self.format.details.get("mixed"):
            raise ValueError(f"{bits} bits, where the configuration says {said:g}")
        return bits

    def floats(self, part: str) -> Tensor:
        """Raises ValueError where a part that holds floats says that it is anything else."""
        tensor = self.parts[part]
        if tensor.dtype not in _FLOATS:
            raise ValueError(f"{part} is {tensor.dtype}")
        return tensor


def along_inputs(m: PackedModule) -> Stored:
    """GPTQ's layout: qweight [in * bits / 32, out], qzeros [groups, out * bits / 32], scales
    [groups, out], and perhaps g_idx [in]."""
    q, scales = m.parts["qweight"], m.floats("scales")
    word = word_bits(q)
    n_out = q.shape[1]
    bits = m.check_bits(whole(word * m.parts["qzeros"].shape[1], n_out))
    n_in = whole(q.shape[0] * word, bits)
    index = m.parts.get("g_idx")
    if scales.shape[1] != n_out or (index is not None and index.shape != (n_in,)):
        raise ValueError("qweight, scales and g_idx are of different widths")
    return (n_out, n_in), f"int{bits}"


def along_outputs(m: PackedModule) -> Stored:
    """AWQ's layout: qweight [in, out * bits / 32], qzeros [groups, out * bits / 32], scales
    [groups, out]."""
    q, n_out = m.parts["qweight"], m.floats("scales").shape[1]
    bits = m.check_bits(whole(word_bits(q) * q.shape[1], n_out))
    if m.parts["qzeros"].shape[1] != q.shape[1]:
        raise ValueError("qweight and qzeros are of different widths")
    return (n_out, q.shape[0]), f"int{bits}"


def element_kind(tensor: Tensor) -> str:
    """``int8``, ``fp8``, or the float type of weights that are stored as floats."""
    if tensor.dtype in _FLOATS:
        return tensor.dtype
    return "fp8" if tensor.dtype in FP8 else f"int{8 * tensor.n_bytes // tensor.n_elements}"


def word_bits(tensor: Tensor) -> int:
    """Raises ValueError where a part that holds packed integers says that it is floats."""
    if tensor.dtype not in _WORDS:
        raise ValueError(f"{tensor.name.rpartition('.')[2]} is {tensor.dtype}")
    return whole(8 * tensor.n_bytes, tensor.n_elements)


def whole(a: int, b: int) -> int:
    """a / b; raises ValueError where that is no whole number."""
    if a % b:
        raise ValueError(f"{a} / {b} is not whole")
    return a // b
