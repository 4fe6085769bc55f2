"""What llama.cpp and its converter do not know of a tokenizer is told before the first job."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from qeval.core.errors import BuildError, EngineError
from qeval.llama.converter import check_tokenizer
from qeval.llama.vocabulary import check_vocabulary

TEXT = "a 33 \U0001f680\n"
SOURCE = """
class TextModel:
    def get_vocab_base_pre(self, tokenizer) -> str:
        chktxt = {text!r}
        if chkhsh == "{hash}":
            res = "known"
"""


@pytest.fixture
def converter(tmp_path, monkeypatch):
    """Writes the source of a converter that knows one tokenizer, by what it makes of TEXT."""
    folder = tmp_path / "llama.cpp"
    (folder / "conversion").mkdir(parents=True)
    (folder / "convert_hf_to_gguf.py").touch()
    monkeypatch.setenv("QEVAL_LLAMA_CPP", str(folder))

    def write(ids: list[int]) -> None:
        hash = hashlib.sha256(str(ids).encode()).hexdigest()
        (folder / "conversion" / "base.py").write_text(SOURCE.format(text=TEXT, hash=hash))

    return write


@pytest.mark.parametrize("special", [True, False])
def test_the_hash_of_a_test_text_decides(tiny_llama, tmp_path, converter, special):
    converter([1, 2, 3])
    with pytest.raises(BuildError, match=r"does not know this tokenizer: .*pre_tokenizer: gpt-2"):
        check_tokenizer(tiny_llama, tmp_path)
    tokenizer = Tokenizer.from_file(str(tiny_llama / "tokenizer.json"))
    converter(tokenizer.encode(TEXT, add_special_tokens=special).ids)
    check_tokenizer(tiny_llama, tmp_path)


def test_where_the_converter_would_not_look_nothing_is_said(tiny_llama, tmp_path, converter):
    converter([1, 2, 3])
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    (folder / "tokenizer.model").touch()
    check_tokenizer(folder, tmp_path)
    (folder / "tokenizer.model").unlink()
    (folder / "tokenizer.json").write_text("{}")
    check_tokenizer(folder, tmp_path)
    (folder / "tokenizer.json").unlink()
    check_tokenizer(folder, tmp_path)


def test_where_there_is_no_converter_yet_nothing_is_said(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.delenv("QEVAL_LLAMA_CPP", raising=False)
    pytest.importorskip("llama_cpp")
    check_tokenizer(tiny_llama, tmp_path)


@pytest.mark.real
def test_the_installed_converter_has_hashes_that_are_found(tiny_llama, cache_dir):
    pytest.importorskip("llama_cpp")
    with pytest.raises(BuildError, match="does not know this tokenizer"):
        check_tokenizer(tiny_llama, cache_dir)


@pytest.mark.real
def test_a_file_whose_vocabulary_llama_cpp_cannot_read(tiny_llama, tmp_path, cache_dir):
    pytest.importorskip("llama_cpp")
    from gguf_files import build

    path = build(tiny_llama, "F32", tmp_path / "known", cache_dir).path
    check_vocabulary(path)
    raw = path.read_bytes()
    assert raw.count(b"gpt-2") == 1
    unknown = Path(tmp_path / "unknown.gguf")
    unknown.write_bytes(raw.replace(b"gpt-2", b"gpt-z"))
    with pytest.raises(EngineError, match="gpt-z"):
        check_vocabulary(unknown)
