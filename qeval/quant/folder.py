"""An Artifact for weights that exist already, from their headers alone (torch-free)."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from qeval.errors import ModelError
from qeval.quant.base import Artifact
from qeval.quant.formats import describe_packed, recognise
from qeval.weights import DTYPE_BYTES, Tensor, is_plausible, read_tensors

_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".index.json")
_PACKED = (".qweight", ".weight_packed", ".W_q", ".SCB", "._weight_qdata", ".weight.absmax")


def copy_side_files(source: Path, folder: Path) -> None:
    """Tokenizer, chat template and the like: what a folder of weights needs to be a model that others
    load. Files that are there already stay, but for generation_config.json: no model is loaded with the
    source's, so what was saved beside the weights says nothing."""
    (folder / "generation_config.json").unlink(missing_ok=True)
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith(_WEIGHTS) and not (folder / file.name).exists():
            shutil.copy(file, folder / file.name)


def describe_folder(path: Path, dtype: str) -> Artifact:
    """A .gguf file and a packed folder as they are stored; a float folder as ``dtype`` (that is how it
    is loaded).

    Raises:
        ModelError: weights are missing, damaged, or of no known format.
    """
    if path.suffix == ".gguf":
        from qeval.quant.gguf import describe_gguf

        return describe_gguf(path)
    if recognise(path) is not None:
        return describe_packed(path)
    tensors = read_tensors(path)
    check_floats(path, tensors)
    n_embedding = sum(t.n_elements for t in tensors if t.is_embedding)
    n_rest = sum(t.n_elements for t in tensors) - n_embedding
    width = DTYPE_BYTES[dtype]
    return Artifact(
        path=path,
        engine="hf",
        simulated=False,
        weight_bytes=n_rest * width,
        embedding_bytes=n_embedding * width,
        bpw=8.0 * width,
        bpw_file=8.0 * width,
    )


def check_floats(path: Path, tensors: Sequence[Tensor]) -> None:
    """What a model folder without a quantization_config holds.

    Raises:
        ModelError: packed weights, or weights in a type that is no float: libraries turn such numbers
            into floats, whatever they were.
    """
    for t in tensors:
        if t.name.endswith(_PACKED):
            raise ModelError(
                f"{path}: {t.name} is packed, but config.json has no quantization_config to say how: "
                "take the one that came with these weights"
            )
        if not is_plausible(t):
            raise ModelError(
                f"{t.file}: {t.name} is {t.dtype}, and weights are floats: its header is false, or "
                "config.json lacks the quantization_config that says how they are packed"
            )
