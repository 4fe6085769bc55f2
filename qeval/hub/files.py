"""Which files of a model repository are needed, by their names: one set of weights, and what configures
the model and its tokenizer. Copies in other formats, other programs' files and pictures are not
downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

_OTHER_WEIGHTS = (
    ".safetensors .bin .pt .pth .ckpt .h5 .msgpack .ot .onnx .onnx_data .gguf .ggml .tflite .mlmodel "
    ".npz .npy .pkl"
)
_OTHER = (
    ".tar .gz .zip .parquet .png .jpg .jpeg .gif .svg .webp .mp4 .wav .mp3 .pdf .ipynb .md .log .html"
)
_NOT_NEEDED = frozenset(f"{_OTHER_WEIGHTS} {_OTHER}".split())


def needed(names: Iterable[str]) -> set[str]:
    """Those of a repository's files (paths, with ``/``) that qeval reads."""
    listed = set(names)
    return weights(listed) | {name for name in listed if configures(name)}


def weights(names: set[str]) -> set[str]:
    """The weight files, and their index, that ``models.weights.weight_files`` takes of all these."""
    for single in ("model.safetensors", "pytorch_model.bin"):
        stem, ending = single.rsplit(".", 1)
        if single in names:
            return {single}
        if f"{single}.index.json" in names:
            numbered = {n for n in names if re.fullmatch(rf"{stem}-\d+-of-\d+\.{ending}", n)}
            others = {n for n in names if n.endswith(f".{ending}") and not n.startswith("consolidated")}
            return {f"{single}.index.json"} | (numbered or others)
    quantized = {n for n in names if re.fullmatch(r"gptq_model-.*bit-.*g\.safetensors|qmodel\.pt", n)}
    return quantized or {n for n in names if re.fullmatch(r"gptq_model-.*bit-.*g\.bin", n)}


def configures(name: str) -> bool:
    """Configuration, tokenizer, chat templates, the model's own code."""
    path = PurePosixPath(name)
    if len(path.parts) > 1:  # templates beside the default one; code imports its neighbours
        return path.suffix == ".py" or path.parts[0] == "additional_chat_templates"
    skipped = path.suffix.lower() in _NOT_NEEDED or name.endswith(".index.json")
    return not skipped and not name.startswith(".")
