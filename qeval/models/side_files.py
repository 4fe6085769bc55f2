"""What is beside a model's weights: tokenizer, chat template, configuration."""

from __future__ import annotations

import shutil
from pathlib import Path

_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".index.json")


def copy_side_files(source: Path, folder: Path) -> None:
    """Tokenizer, chat template and the like: what a folder of weights needs to be a model that others
    load. Files that are there already stay, except for generation_config.json: no model is loaded with
    the source's, so what was saved beside the weights says nothing."""
    (folder / "generation_config.json").unlink(missing_ok=True)
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith(_WEIGHTS) and not (folder / file.name).exists():
            shutil.copy(file, folder / file.name)
