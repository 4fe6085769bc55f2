"""Keys of cells and artifacts: what changes them and what must not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qeval.cells import Cell, plan
from qeval.errors import UsageError
from qeval.quant.base import ModelRef
from qeval.spec import load_spec

SPEC = """\
name: t
models: [m]
dtype: float32
quantizations:
{rows}
tasks:
  - perplexity: {{dataset: wikitext2, limit: 2}}
"""


def cells(folder: Path, rows: str, **config: object) -> list[Cell]:
    """The cells of a model that is nothing but a configuration."""
    model = folder / "model"
    model.mkdir(exist_ok=True)
    shape = {"hidden_size": 96, "num_attention_heads": 2, **config}
    (model / "config.json").write_text(json.dumps(shape))
    path = folder / "t.yaml"
    path.write_text(SPEC.format(rows=rows))
    return plan(load_spec(path), [ModelRef("m", model, "sha256:0", "float32")], folder)


def test_the_key_of_a_known_cell(tmp_path):
    """Made by the version before `activations` and `kv_cache`; only a raised version of hqq, of
    perplexity or of hf may change it, and with it every result that users have."""
    (cell,) = cells(tmp_path, "  - hqq: {num_bits: 4, group_size: 64}")
    assert cell.key[:16] == "a59015fa9c042e62"


def test_how_weights_run_is_in_a_cells_key_and_not_in_its_artifacts(tmp_path):
    rows = "  - rtn: {num_bits: 4}\n    activations: [16, 8]\n    kv_cache: [16, 4]"
    found = cells(tmp_path, rows)
    assert [c.row.quantization.label for c in found] == [
        "RTN W4A16",
        "RTN W4A16KV4",
        "RTN W4A8",
        "RTN W4A8KV4",
    ]
    assert len({c.key for c in found}) == 4
    assert len({c.row.artifact_key for c in found}) == 1
    (plain,) = cells(tmp_path, "  - rtn: {num_bits: 4}")
    assert plain.key == found[0].key


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            "  - gguf: Q8_0\n    kv_cache: 4",
            "m · Q8_0 KV4: kv_cache: the engine llamacpp does not quantize it: take kv_cache off this "
            "row, or take a method whose weights run on hf",
        ),
        (
            "  - gguf: Q8_0\n    activations: 8",
            "m · Q8_0 A8: activations: the engine llamacpp does not",
        ),
        (
            "  - rtn: {kv_cache: {num_bits: 4, group_size: 32}}",
            "m · RTN W4A16KV4: kv_cache: group_size 32 does not divide the head dimension 48: use 16 "
            "or 48",
        ),
        (
            "  - bitsandbytes: 8\n    activations: 8",
            r"m · LLM.int8() A8: activations: these weights come with",
        ),
        ("  - torchao: int8dyn\n    activations: 8", "take activations off this row"),
        (
            "  - compressed-tensors: W8A8\n    activations: 4",
            "kernels that quantize activations themselves",
        ),
    ],
)
def test_rows_that_cannot_be_are_refused_before_any_job(tmp_path, rows, message):
    with pytest.raises(UsageError) as caught:
        cells(tmp_path, rows)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_they_do_not_concern_goes_with_them(tmp_path):
    """Kernels of their own activations with a low-bit cache; a group longer than the head dimension."""
    rows = "  - bitsandbytes: [8, 4]\n    kv_cache: 4\n  - compressed-tensors: W8A8\n    kv_cache: 8"
    labels = [c.row.quantization.label for c in cells(tmp_path, rows, head_dim=64)]
    assert labels == ["LLM.int8() KV4", "NF4 KV4", "W8A8KV8 (llm-compressor)"]


def test_a_packed_checkpoint_that_quantizes_activations_itself(tiny_llama, tmp_path, monkeypatch):
    """Which formats do: tests/quant/test_formats.py."""
    monkeypatch.setattr("qeval.cells.rounds_activations", lambda artifact: artifact.path == tiny_llama)
    path = tmp_path / "t.yaml"
    path.write_text(SPEC.format(rows=f"  - checkpoint: {tiny_llama}\n    activations: 8"))
    with pytest.raises(UsageError, match="A8: activations: these weights come with kernels that"):
        plan(load_spec(path), [ModelRef("m", tiny_llama, "sha256:0", "float32")], tmp_path)
