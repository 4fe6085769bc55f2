"""GGUF files for the tests of this folder: made once, and broken copies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qeval.quant.base import Artifact, BuildContext, ModelRef
from qeval.quant.gguf import Gguf, GgufOptions


def build(model: Path, kind: str, out: Path, cache_dir: Path) -> Artifact:
    out.mkdir()
    ref = ModelRef(str(model), model, "sha256:test", "float32")
    # transformers' from-scratch tokenizer is unknown to the converter, which goes by a hash
    options = GgufOptions(type=kind, pre_tokenizer="gpt-2")
    context = BuildContext(ref, out, None, lambda _: [], lambda *_: None, cache_dir, "cpu", 1)
    return Gguf().build(options, context)


@pytest.fixture(scope="session")
def tiny_f32(tiny_llama: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return build(tiny_llama, "F32", tmp_path_factory.mktemp("gguf") / "f32", cache_dir)


def damaged(kind: str, good: Path, path: Path) -> Path:
    raw = good.read_bytes()
    contents = {
        "empty": b"",
        "text": b"this is not a model\n",
        "header": raw[:100],
        "cut": raw[: len(raw) // 2],
        "architecture": raw.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0lxama", 1),
    }
    path.write_bytes(contents[kind])
    return path


@pytest.fixture(scope="session")
def build_gguf(cache_dir: Path) -> Callable[[Path, str, Path], Artifact]:
    return lambda model, kind, out: build(model, kind, out, cache_dir)


@pytest.fixture(scope="session")
def damage() -> Callable[[str, Path, Path], Path]:
    return damaged
