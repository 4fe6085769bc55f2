"""Reading safetensors headers and Hugging Face folders without torch: shapes, sizes, truncation.

A safetensors file is 8 bytes of header length, a JSON header with each tensor's dtype, shape and byte
range, then the data (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qeval.errors import ModelError

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

# Token (and position) embeddings and output heads, as transformers' model families name them.
EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|embed_positions|word_embeddings|wte|wpe|embed_in|embed_out|lm_head)\.weight$"
)
_MAX_HEADER = 100 * 2**20  # the format's own limit


@dataclass(frozen=True)
class Tensor:
    name: str
    dtype: str  # as safetensors writes it: F32, BF16, I32, ...
    shape: tuple[int, ...]
    n_bytes: int

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def is_embedding(self) -> bool:
        return EMBEDDING.search(self.name) is not None


def read_header(path: Path) -> list[Tensor]:
    """The tensors of one safetensors file.

    Raises:
        ModelError: the file is not one, or is shorter than its header says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else _MAX_HEADER + 1
        if length > min(_MAX_HEADER, size):
            raise ModelError(f"{path}: not a safetensors file, or cut off in its header")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
        except ValueError as err:
            raise ModelError(f"{path}: its safetensors header is not JSON") from err
    header.pop("__metadata__", None)
    tensors = [
        Tensor(n, t["dtype"], tuple(t["shape"]), t["data_offsets"][1] - t["data_offsets"][0])
        for n, t in header.items()
    ]
    needed = 8 + length + sum(t.n_bytes for t in tensors)
    if size < needed:
        raise ModelError(f"{path}: truncated: {size} bytes of {needed}; download or copy it again")
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """The weight files that transformers would load: safetensors, else .bin, checked for gaps.

    Raises:
        ModelError: there is none, or the index names a shard that is not there.
    """
    for index, single in (
        ("model.safetensors.index.json", "model.safetensors"),
        ("pytorch_model.bin.index.json", "pytorch_model.bin"),
    ):
        if (folder / index).is_file():
            names = sorted(set(json.loads((folder / index).read_text())["weight_map"].values()))
            gone = [n for n in names if not (folder / n).is_file()]
            if gone:
                raise ModelError(f"{folder}: the shard {gone[0]} named by {index} is missing")
            return [folder / n for n in names]
        if (folder / single).is_file():
            return [folder / single]
    raise ModelError(f"{folder}: no weights (model.safetensors, its index, or pytorch_model.bin)")


def linear_shapes(folder: Path) -> dict[str, tuple[int, int]]:
    """The float linears of a folder by name: [out_features, in_features] of every two-dimensional
    weight that is no embedding and no head; {} where only torch can list them (.bin)."""
    return {
        t.name.removesuffix(".weight"): (t.shape[0], t.shape[1])
        for t in read_tensors(folder) or ()
        if len(t.shape) == 2 and t.name.endswith(".weight") and not t.is_embedding
    }


def read_tensors(folder: Path) -> list[Tensor] | None:
    """All tensors of a model folder; None for .bin files, whose contents only torch can list."""
    files = weight_files(folder)
    if files[0].suffix == ".bin":
        return None
    return [t for f in files for t in read_header(f)]
