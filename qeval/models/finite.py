"""Weights that are not numbers: NaN and infinity in a model's files, by the name of the tensor.

Quantizing them would silently give a model of noise. torch-free, a few megabytes at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qeval.core.errors import BuildError
from qeval.models.tensors import Tensor
from qeval.models.weights import read_tensors

_CHUNK_BYTES = 2**24
# Of a float, read as an unsigned integer without its sign bit: the order is that of the magnitudes, and
# NaN comes last.
_WORDS = {"F64": np.uint64, "F32": np.uint32, "BF16": np.uint16, "F16": np.uint16}
# The smallest magnitudes that a dtype rounds to infinity.
_LIMITS = {"float16": 65520.0, "bfloat16": 2.0**128 - 2.0**119, "float32": 2.0**128 - 2.0**103}
_NO_WEIGHTS = ("masked_bias",)  # what attention is masked with, in files of GPT-2's and GPT-J's days


def check_finite(folder: Path, dtype: str | None) -> None:
    """Raises BuildError, with the tensor's name, where a weight of a folder is not finite as it is
    stored, or as ``dtype`` has it (None: is not asked)."""
    for tensor in read_tensors(folder):
        if tensor.dtype not in _WORDS or tensor.name.rpartition(".")[2] in _NO_WEIGHTS:
            continue
        largest = _largest(tensor)
        if not largest < np.inf:
            raise BuildError(
                f"{folder}: {tensor.name} holds NaN or infinity: nothing can be quantized from it; get "
                "the model again"
            )
        if dtype is not None and largest >= _LIMITS[dtype]:
            raise BuildError(
                f"{folder}: {tensor.name} holds {largest:.3g}, which is infinity in {dtype}: take "
                "another dtype"
            )


def _largest(tensor: Tensor) -> float:
    """The largest magnitude; NaN where there is one."""
    word = np.dtype(_WORDS[tensor.dtype])
    sign_off = np.array(2 ** (8 * word.itemsize - 1) - 1, word)
    found = max((int((chunk & sign_off).max()) for chunk in _words(tensor, word)), default=0)
    if tensor.dtype == "BF16":
        return float(np.array(found << 16, np.uint32).view(np.float32))
    return float(np.array(found, word).view(f"f{word.itemsize}"))


def _words(tensor: Tensor, word: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    with tensor.file.open("rb") as file:
        file.seek(tensor.offset)
        for start in range(0, tensor.n_bytes, _CHUNK_BYTES):
            yield np.frombuffer(file.read(min(_CHUNK_BYTES, tensor.n_bytes - start)), word)


def nonfinite_notes(names: list[str]) -> tuple[str, ...]:
    """What a row whose weights are not finite says."""
    if not names:
        return ()
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (f"weights that are not finite (NaN, infinity): {names[0]}{others}",)
