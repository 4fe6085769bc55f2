"""An Artifact for weights that exist already, from their headers alone (torch-free)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from qeval.quant.base import Artifact
from qeval.weights import DTYPE_BYTES, Tensor, read_tensors, weight_files

_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".index.json")


def copy_side_files(source: Path, folder: Path) -> None:
    """Tokenizer, chat template and the like: what a folder of weights needs to be a model that others
    load. Files that are there already stay."""
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith(_WEIGHTS) and not (folder / file.name).exists():
            shutil.copy(file, folder / file.name)


def describe_folder(path: Path, dtype: str) -> Artifact:
    """A .gguf file as it is stored; a float folder as ``dtype`` (that is how it is loaded); a folder
    with a ``quantization_config`` as it is stored.

    Raises:
        ModelError: weights are missing, truncated, or of no known format.
    """
    if path.suffix == ".gguf":
        from qeval.quant.gguf import describe_gguf

        return describe_gguf(path)
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    quantized = config.get("quantization_config")
    tensors = read_tensors(path)
    if quantized and quantized.get("quant_method") in ("gptq", "awq"):
        from qeval.quant.formats import describe_packed

        return describe_packed(path)
    if tensors is None or quantized:
        return _as_stored(path, tensors, quantized)
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


def _as_stored(
    path: Path, tensors: list[Tensor] | None, quantized: dict[str, object] | None
) -> Artifact:
    """Sizes from the files; bits per weight are unknown without the format's own rules."""
    if tensors is None:
        total, embedding = sum(f.stat().st_size for f in weight_files(path)), 0
    else:
        total = sum(t.n_bytes for t in tensors)
        embedding = sum(t.n_bytes for t in tensors if t.is_embedding)
    method = (quantized or {}).get("quant_method")
    return Artifact(
        path=path,
        engine="hf",
        simulated=False,
        weight_bytes=total - embedding,
        embedding_bytes=embedding,
        bpw=None,
        bpw_file=None,
        details={"quant_method": method} if method else {},
    )
