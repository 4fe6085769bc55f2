"""The tokenizer inside a GGUF file against the Hugging Face folder it was made from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from qeval.engines.llamacpp import GgufTokenizer
from qeval.errors import ModelError
from qeval.quant.base import ModelRef

pytest.importorskip("llama_cpp")

TEXTS = [
    "",
    "def f(x):\n    return x + 1\n",
    " two  spaces ",
    "naïve 漢字 \U0001f600",
    "<|endoftext|>a",
]


def test_the_vocabulary_of_the_file_is_that_of_the_folder(tiny_f32, tiny_llama):
    from qeval.tokenizer import HfTokenizer

    ours = GgufTokenizer(tiny_f32.path)
    theirs = HfTokenizer(ModelRef("t", tiny_llama, "sha256:t", "float32"))
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))
    assert (ours.bos_id, ours.adds_bos, ours.eos_ids) == (theirs.bos_id, False, theirs.eos_ids)
    assert ours.sha256 == theirs.sha256 and not ours.has_chat_template


def test_the_chat_template_is_rendered_as_transformers_does(tiny_llama, build_gguf, tmp_path):
    from transformers import AutoTokenizer

    from qeval.tokenizer import HfTokenizer

    folder = Path(shutil.copytree(tiny_llama, tmp_path / "chat"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (
        "{% for m in messages %}\n{{ eos_token + m['role'] }}: {{ m['content'] | trim }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    artifact = build_gguf(folder, "F32", tmp_path / "out")
    messages = [{"role": "user", "content": " write f "}]
    theirs = HfTokenizer(ModelRef("t", folder, "sha256:t", "float32")).chat(messages)
    assert GgufTokenizer(artifact.path).chat(messages) == theirs


def test_all_that_ends_a_generation_is_found_in_the_vocabulary(
    tiny_llama, tokenizer_with, build_gguf, tmp_path
):
    """The end of text, of a turn and of a message: llama.cpp knows them by name and by metadata."""
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "turns"))
    tokenizer_with("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<tool>").save_pretrained(folder)
    artifact = build_gguf(folder, "F32", tmp_path / "out")
    assert GgufTokenizer(artifact.path).eos_ids == (0, 1, 2, 3)


def test_without_a_template_chat_is_refused(tiny_f32):
    with pytest.raises(ModelError, match="no chat template"):
        GgufTokenizer(tiny_f32.path).chat([{"role": "user", "content": "x"}])
