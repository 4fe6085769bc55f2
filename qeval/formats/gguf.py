"""GGUF: the types that llama.cpp quantizes to, and a file as it is stored."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from qeval.core.artifact import Artifact, LayerReport


@dataclass(frozen=True)
class GgufType:
    ftype: int  # llama.h's enum llama_ftype; the file's general.file_type
    block: int  # inputs that share a block of its main type; 1: not quantized
    needs_imatrix: bool = False  # llama.cpp refuses to go without (llama-quant.cpp)


TYPES: dict[str, GgufType] = {
    "F32": GgufType(0, 1),
    "F16": GgufType(1, 1),
    "BF16": GgufType(32, 1),
    "Q8_0": GgufType(7, 32),
    "Q6_K": GgufType(18, 256),
    "Q5_K_M": GgufType(17, 256),
    "Q5_K_S": GgufType(16, 256),
    "Q5_1": GgufType(9, 32),
    "Q5_0": GgufType(8, 32),
    "Q4_K_M": GgufType(15, 256),
    "Q4_K_S": GgufType(14, 256),
    "Q4_1": GgufType(3, 32),
    "Q4_0": GgufType(2, 32),
    "IQ4_NL": GgufType(25, 32),
    "IQ4_XS": GgufType(30, 256),
    "MXFP4_MOE": GgufType(38, 32),  # experts in MXFP4, everything else in Q8_0
    "Q3_K_L": GgufType(13, 256),
    "Q3_K_M": GgufType(12, 256),
    "Q3_K_S": GgufType(11, 256),
    "IQ3_M": GgufType(27, 256),
    "IQ3_S": GgufType(26, 256),
    "IQ3_XS": GgufType(22, 256, needs_imatrix=True),  # its attn_q and attn_k are IQ3_XXS
    "IQ3_XXS": GgufType(23, 256, needs_imatrix=True),
    "Q2_K": GgufType(10, 256),
    "Q2_K_S": GgufType(21, 256, needs_imatrix=True),
    "IQ2_M": GgufType(29, 256, needs_imatrix=True),
    "IQ2_S": GgufType(28, 256, needs_imatrix=True),
    "IQ2_XS": GgufType(20, 256, needs_imatrix=True),
    "IQ2_XXS": GgufType(19, 256, needs_imatrix=True),
    "Q2_0": GgufType(41, 64),
    "TQ2_0": GgufType(37, 256),
    "TQ1_0": GgufType(36, 256),
    "IQ1_M": GgufType(31, 256, needs_imatrix=True),
    "IQ1_S": GgufType(24, 256, needs_imatrix=True),
    "Q1_0": GgufType(40, 128),
}


ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}  # llama-quantize's own


_NAMES = {t.ftype: name for name, t in TYPES.items()}


def describe_gguf(path: Path) -> Artifact:
    """The Artifact of a file as it is, with the types that are really in it (reads the header only).

    Raises:
        ModelError: not a GGUF file, or cut off.
    """
    from qeval.llama.gguf_file import read_header

    header = read_header(path)
    name = _NAMES.get(header.metadata.get("general.file_type", -1))
    block = TYPES[name].block if name else 1
    linears = [t for t in header.tensors if t.is_linear]
    layers = tuple(
        LayerReport(t.name, t.shape, t.kind, t.n_bytes, note=_width_note(t.shape[-1], block))
        for t in linears
    )
    total = header.weight_bytes + header.embedding_bytes
    return Artifact(
        path=path,
        engine="llamacpp",
        simulated=False,
        weight_bytes=header.weight_bytes,
        embedding_bytes=header.embedding_bytes,
        bpw=8 * sum(t.n_bytes for t in linears) / max(1, sum(t.n_params for t in linears)),
        bpw_file=8 * total / max(1, sum(t.n_params for t in header.tensors)),
        layers=layers,
        notes=_fallbacks(layers),
        details={"type": name, "types": dict(Counter(t.kind for t in header.tensors))},
    )


def _width_note(width: int, block: int) -> str:
    return f"width {width} is not a multiple of {block}" if width % block else ""


def _fallbacks(layers: tuple[LayerReport, ...]) -> tuple[str, ...]:
    """``7 of 30 linears stored as Q8_0: width 576 is not a multiple of 256``, per type and width."""
    counts = Counter((r.kind, r.note) for r in layers if r.note)
    return tuple(
        f"{count} of {len(layers)} linears stored as {kind}: {note}"
        for (kind, note), count in counts.items()
    )
