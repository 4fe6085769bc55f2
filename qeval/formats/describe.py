"""An Artifact for weights that exist already, from their headers alone (torch-free)."""

from __future__ import annotations

from pathlib import Path

from qeval.core.artifact import Artifact
from qeval.formats.recognise import check_floats, describe_packed, recognise
from qeval.models.tensors import DTYPE_BYTES
from qeval.models.weights import read_tensors


def describe_folder(path: Path, dtype: str) -> Artifact:
    """A .gguf file and a packed folder as they are stored; a float folder as ``dtype`` (that is how it
    is loaded).

    Raises:
        ModelError: weights are missing, damaged, or of no known format.
    """
    if path.suffix == ".gguf":
        from qeval.formats.gguf import describe_gguf

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
