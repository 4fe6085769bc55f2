"""What is told from files equals what the loaded model and tokenizer say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qeval.core.artifact import ModelRef
from qeval.models.loading import model_limit
from qeval.models.tokenizer import load_tokenizer
from qeval.models.told import count_up_to, encoder, has_chat_template, told_limit


@pytest.fixture
def model(tiny_llama, tmp_path) -> ModelRef:
    shutil.copytree(tiny_llama, tmp_path / "model")
    return ModelRef("m", tmp_path / "model", "sha256:0", "float32")


def change(model: ModelRef, name: str, **keys: object) -> None:
    path = model.path / name
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_the_limit_is_that_of_the_loaded_configuration(model):
    assert told_limit(model) == model_limit(model.path) == 512
    change(model, "config.json", max_position_embeddings=0)
    assert told_limit(model) is None
    (model.path / "config.json").write_text("[")
    assert told_limit(model) is None


def test_ids_are_those_of_the_tokenizer(model):
    text = "The quick brown fox: <s> jumps\n\nover 13 lazy dogs."
    assert encoder(model)(text) == load_tokenizer(model).encode(text)


def test_a_chat_template_is_found_where_the_tokenizer_finds_it(model):
    (model.path / "chat_template.jinja").unlink(missing_ok=True)
    change(model, "tokenizer_config.json", chat_template=None)
    assert has_chat_template(model) is load_tokenizer(model).has_chat_template is False
    change(model, "tokenizer_config.json", chat_template="{{ messages }}")
    assert has_chat_template(model) is load_tokenizer(model).has_chat_template is True
    change(model, "tokenizer_config.json", chat_template=None)
    (model.path / "chat_template.jinja").write_text("{{ messages }}")
    assert has_chat_template(model) is None and load_tokenizer(model).has_chat_template


def test_what_only_code_tells_is_not_guessed(model):
    change(
        model, "tokenizer_config.json", chat_template=None, auto_map={"AutoTokenizer": ["a.B", None]}
    )
    (model.path / "chat_template.jinja").unlink(missing_ok=True)
    assert has_chat_template(model) is None
    assert encoder(model) is None
    Path(model.path / "tokenizer.json").unlink()
    change(model, "tokenizer_config.json", auto_map={})
    assert has_chat_template(model) is None


@given(st.text("ab ", max_size=400), st.integers(1, 40))
def test_counting_stops_when_there_are_enough(text, enough):
    seen = []

    def encode(part: str) -> list[int]:
        seen.append(len(part))
        return list(map(len, part.split()))

    assert count_up_to(encode, text, enough) == min(len(text.split()), enough)
