"""What a weight file says of its tensors, whatever kind of file it is."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


# Token (and position) embeddings and output heads, as transformers' model families name them.
EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|embed_positions|word_embeddings?|embeddings|wte|wpe|tokens_embed|positions_embed"
    r"|embed_in|embed_out|lm_head)$"
)


FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


_INTEGERS = re.compile(r"(ids?|index|indices|idx|mask|tid2eid|tracked)$")


@dataclass(frozen=True)
class Tensor:
    name: str
    dtype: str  # as safetensors writes it: F32, BF16, I32, ...
    shape: tuple[int, ...]
    n_bytes: int
    file: Path = Path()
    offset: int = 0  # where its data begins in the file

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def is_embedding(self) -> bool:
        """The weight of a token embedding or an output head."""
        return self.name.endswith(".weight") and is_embedding(self.name.removesuffix(".weight"))


@dataclass(frozen=True)
class Contents:
    """``facts``: plain data beside the tensors, by dotted name: safetensors' metadata, the numbers and
    strings of a PyTorch file."""

    tensors: list[Tensor]
    facts: dict[str, object] = field(default_factory=dict)


def is_embedding(module: str) -> bool:
    """Whether a module, by its name, is a token embedding or an output head."""
    return EMBEDDING.search(module) is not None


def is_plausible(tensor: Tensor) -> bool:
    """Whether a tensor that no format packs can be what its dtype says: weights are floats, and what
    models hold as integers are positions, indices and masks."""
    if tensor.dtype in FLOATS:
        return True
    last = tensor.name.rpartition(".")[2]
    if last.endswith(("weight", "_proj")) or (last == "bias" and len(tensor.shape) == 1):
        return False
    return tensor.dtype in ("BOOL", "U8", "I64") or _INTEGERS.search(last) is not None


def unquantized_note(n_linear: int, n_body: int) -> tuple[str, ...]:
    """Says so where much of a model's body (its parameters but for embeddings and head) is not in
    linear layers: convolutions, experts in one tensor that the method does not open."""
    share = 1 - n_linear / max(1, n_body)
    if share < 0.05:
        return ()
    return (
        f"{share:.0%} of the parameters outside embeddings are not in linear layers: left unquantized",
    )
