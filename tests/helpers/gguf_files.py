"""GGUF files for tests: made once, and broken copies."""

from __future__ import annotations

from pathlib import Path

from qeval.core.artifact import Artifact, ModelRef
from qeval.data.calibration import Calibration, CalibrationOptions
from qeval.quant.base import BuildContext
from qeval.quant.gguf import Gguf, GgufOptions


def build(model: Path, kind: str, out: Path, cache_dir: Path) -> Artifact:
    out.mkdir()
    ref = ModelRef(str(model), model, "sha256:test", "float32")
    # transformers' from-scratch tokenizer is unknown to the converter, which goes by a hash
    options = GgufOptions(type=kind, pre_tokenizer="gpt-2")
    context = BuildContext(ref, out, None, _no_text, lambda *_: None, cache_dir, "cpu", 1)
    return Gguf().build(options, context)


def _no_text(options: CalibrationOptions) -> Calibration:
    raise AssertionError("these types need no importance matrix")


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
