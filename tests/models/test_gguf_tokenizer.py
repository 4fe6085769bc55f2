"""The tokenizer inside a GGUF file against the Hugging Face folder it was made from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qeval.core.artifact import ModelRef
from qeval.core.errors import ModelError
from qeval.engines.llamacpp import GgufTokenizer

pytest.importorskip("llama_cpp")

TEXTS = [
    "",
    "def f(x):\n    return x + 1\n",
    " two  spaces ",
    "naïve 漢字 \U0001f600",
    "<|endoftext|>a",
    "return ' '.join(x) , a . b ! 's",
]
MESSAGES = [{"role": "user", "content": " write <f> "}]


def test_the_vocabulary_of_the_file_is_that_of_the_folder(tiny_f32, tiny_llama):
    from qeval.models.tokenizer import HfTokenizer

    ours = GgufTokenizer(tiny_f32.path)
    theirs = HfTokenizer(ModelRef("t", tiny_llama, "sha256:t", "float32"))
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text) == ours.prompt(text)
        as_text = ours.encode(text, parse_special=False)
        assert as_text == theirs.encode(text, parse_special=False)
        assert ours.decode(as_text) == text
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))
    end = ours.encode("<|endoftext|>")
    assert ours.decode(end, special=True) == theirs.decode(end, special=True) == "<|endoftext|>"
    assert (ours.bos_id, ours.adds_bos, ours.eos_ids) == (theirs.bos_id, False, theirs.eos_ids)
    assert ours.sha256 == theirs.sha256 and not ours.has_chat_template
    assert ours.notes() == theirs.notes() == ()


def test_a_folder_whose_class_would_read_it_otherwise_is_converted_by_its_file(
    tiny_llama, tiny_f32, build_gguf, tmp_path
):
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "labelled"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    told = json.dumps({**config, "tokenizer_class": "LlamaTokenizerFast"})
    (folder / "tokenizer_config.json").write_text(told)
    made, right = (GgufTokenizer(a.path) for a in (build_gguf(folder, "F32", tmp_path / "o"), tiny_f32))
    assert (made.sha256, made.encode(TEXTS[1])) == (right.sha256, right.encode(TEXTS[1]))


def vocabulary(path: Path, tokens: list[str], model: str, **values: object) -> GgufTokenizer:
    """A file that is a vocabulary; the first three tokens are control tokens."""
    from gguf import GGUFWriter, TokenType

    writer = GGUFWriter(path, "llama")
    for key, value in {"context_length": 64, "embedding_length": 8, "block_count": 1}.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    byte = [TokenType.BYTE if token.startswith("<0x") else TokenType.NORMAL for token in tokens]
    writer.add_token_types([TokenType.CONTROL] * 3 + byte[3:])
    for key, value in values.items():
        getattr(writer, key)(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GgufTokenizer(path)


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    words = ["▁", "▁▁", "if", "▁if", "x", ":", "<", "s", ">", "漢"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *words]
    return vocabulary(tmp_path_factory.mktemp("spm") / "v.gguf", tokens, "llama")


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    """Llama 3's pre-tokenizer: of those where llama.cpp's own detokenizer takes out spaces."""
    alphabet = [*"ĠĊ!'.,abcdefghijklmnopqrstuvwxyz()=æ¼¢"]
    tokens = ["<a>", "<b>", "<c>", *alphabet]
    path = tmp_path_factory.mktemp("bpe") / "v.gguf"
    merges = {"add_token_merges": ["a b"], "add_tokenizer_pre": "llama-bpe"}
    return vocabulary(path, tokens, "gpt2", **merges, add_bos_token_id=0, add_eos_token_id=1)


def test_a_completion_keeps_its_first_space(sentencepiece):
    prompt = sentencepiece.prompt("x:\n")
    ids = sentencepiece.encode("x:\n    if x", special=False)[len(prompt) - 1 :]
    assert sentencepiece.decode(ids, after=prompt) == "    if x"
    assert sentencepiece.decode(ids) == "   if x"
    assert sentencepiece.decode(prompt) == "x:\n"
    assert prompt[0] == 1 and sentencepiece.encode("x", special=False)[0] != 1


def test_special_tokens_in_a_text_are_tokens_or_text(sentencepiece):
    assert sentencepiece.encode("x<s>", special=False)[-1] == 1
    as_text = sentencepiece.encode("x<s>", special=False, parse_special=False)
    assert 1 not in as_text and sentencepiece.decode(as_text) == "x<s>"


def test_spaces_are_left_as_they_are(byte_level):
    text = "a = ' '.join(b)  , c . d ! 's"
    ids = byte_level.encode(text, special=False)
    assert byte_level.decode(ids) == text
    assert byte_level.decode(ids[3:], after=ids[:3]) == byte_level.decode(ids)[3:]


def test_a_character_whose_bytes_are_several_tokens_belongs_where_it_ends(byte_level):
    ids = byte_level.encode("a漢b", special=False)
    assert len(ids) == 5
    assert [byte_level.decode(ids[n:], after=ids[:n]) for n in range(6)] == [
        "a漢b",
        "漢b",
        "漢b",
        "漢b",
        "b",
        "",
    ]
    assert byte_level.decode(ids[:2]) == "a�"


EACH = "{% for m in messages %}"
TEMPLATES = {
    "plain": EACH + "\n{{ eos_token + m['role'] }}: {{ m['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}",
    "generation": EACH + "{% generation %}{{ m['content'] }}\n{% endgeneration %}{% endfor %}",
    "tools": "{% if tools is not none or documents %}given{% endif %}{{ bos_token }}",
    "json": "{{ messages | tojson }}{{ messages[0] | tojson(indent=1) }}",
    "date": "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}",
    "break": EACH + "{{ m['role'] }}{% break %}{% endfor %}",
}


def test_chat_templates_are_rendered_as_transformers_does(tiny_llama, build_gguf, tmp_path):
    from transformers import AutoTokenizer

    from qeval.models.chat_template import render
    from qeval.models.tokenizer import HfTokenizer

    folder = Path(shutil.copytree(tiny_llama, tmp_path / "chat"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    for template in TEMPLATES.values():
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
        theirs = HfTokenizer(ModelRef("t", folder, "sha256:t", "float32")).chat(MESSAGES)
        assert render(template, MESSAGES, tokens) == theirs
    artifact = build_gguf(folder, "F32", tmp_path / "out")
    assert GgufTokenizer(artifact.path).chat(MESSAGES) == theirs


def test_a_template_of_a_file_gets_the_tokens_that_the_file_names(tmp_path, sentencepiece):
    shown = "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token }}"
    tokens = ["<a>", "<b>", "<c>", *"abcdefghijklmnopqrstuvwxyz"]
    values = {"add_token_merges": ["a b"], "add_tokenizer_pre": "gpt-2", "add_chat_template": shown}
    path = tmp_path / "v.gguf"
    made = vocabulary(path, tokens, "gpt2", **values, add_eos_token_id=1, add_pad_token_id=2)
    assert made.chat(MESSAGES) == "<b><c>"
    assert dict(sentencepiece._special_tokens()) == {"bos_token": "<s>", "eos_token": "</s>"}


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
