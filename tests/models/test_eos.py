"""The ids that end a generation: of the tokenizer, generation_config.json and config.json together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qeval.core.artifact import ModelRef
from qeval.models.tokenizer import load_tokenizer


def eos_ids(source: Path, folder: Path, **files: object) -> tuple[int, ...]:
    shutil.copytree(source, folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    for name, said in files.items():
        path = folder / f"{name}.json"
        kept = json.loads(path.read_text()) if path.is_file() else {}
        kept.pop("eos_token_id", None)
        path.write_text(json.dumps(kept | said if isinstance(said, dict) else said))
    return load_tokenizer(ModelRef("m", folder, "sha256:m", "float32")).eos_ids  # the tokenizer's: 0


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({}, {}, (0,)),
        ({"eos_token_id": 7}, {}, (0, 7)),
        ({"eos_token_id": [7, 9]}, {"eos_token_id": 5}, (0, 5, 7, 9)),
        ({"eos_token_id": None}, {"eos_token_id": [0, 5, 5]}, (0, 5)),
        ({"text_config": {"eos_token_id": [8]}}, {}, (0, 8)),
        ({"thinker_config": {"text_config": {"eos_token_id": 8}}}, {}, (0, 8)),
        ({"vision_config": {"eos_token_id": 8}}, {}, (0,)),  # of another model in the same folder
        ({"eos_token_id": -1}, {"eos_token_id": [-1, None, True, "</s>", 3]}, (0, 3)),
        ({"text_config": None}, {}, (0,)),
    ],
)
def test_the_union_of_three_files(tiny_llama, tmp_path, config, generation, expected):
    found = eos_ids(tiny_llama, tmp_path / "m", config=config, generation_config=generation)
    assert found == expected
