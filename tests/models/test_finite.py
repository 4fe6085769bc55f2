"""Weights that are not finite: named before anything is made of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qeval.core.errors import BuildError
from qeval.models.finite import check_finite, nonfinite_notes

UP = "model.layers.1.mlp.up_proj.weight"


def spoiled(
    source: Path, folder: Path, value: float, *, dtype: str = "float32", bin: bool = False
) -> Path:
    shutil.copytree(source, folder)
    file = folder / "model.safetensors"
    tensors = {name: t.to(getattr(torch, dtype)) for name, t in load_file(file).items()}
    tensors[UP].view(-1)[-1] = value
    file.unlink()
    if bin:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("bin", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_tensor_is_named_in_every_dtype_and_file(tiny_llama, tmp_path, value, dtype, bin):
    folder = spoiled(tiny_llama, tmp_path / "m", value, dtype=dtype, bin=bin)
    with pytest.raises(BuildError, match=rf"{UP} holds NaN or infinity: nothing can be quantized"):
        check_finite(folder, None)


@pytest.mark.parametrize(
    ("stored", "value", "asked", "fine"),
    [
        ("float32", 65519.0, "float16", True),
        ("float32", -65520.0, "float16", False),
        ("float32", 65520.0, "bfloat16", True),
        ("bfloat16", 1e5, "float16", False),
        ("float32", 3.38e38, "bfloat16", True),
        ("float32", -3.4e38, "bfloat16", False),
        ("float64", 1e39, "float32", False),
        ("float64", 3.4e38, "float32", True),
        ("float16", 65504.0, "float16", True),
    ],
)
def test_what_the_dtype_rounds_to_infinity_counts(tiny_llama, tmp_path, stored, value, asked, fine):
    rounded = torch.tensor(value, dtype=getattr(torch, stored)).to(getattr(torch, asked))
    assert bool(rounded.isfinite()) == fine  # torch says the same
    folder = spoiled(tiny_llama, tmp_path / "m", value, dtype=stored)
    check_finite(folder, None)
    if fine:
        check_finite(folder, asked)
    else:
        with pytest.raises(BuildError, match=rf"{UP} holds .* which is infinity in {asked}: take"):
            check_finite(folder, asked)


def test_the_last_piece_of_a_file_is_read_too(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr("qeval.models.finite._CHUNK_BYTES", 4096)
    check_finite(tiny_llama, "float16")
    with pytest.raises(BuildError, match=UP):
        check_finite(spoiled(tiny_llama, tmp_path / "m", float("nan")), "float16")


def test_notes():
    assert nonfinite_notes([]) == ()
    assert nonfinite_notes(["a"]) == ("weights that are not finite (NaN, infinity): a",)
    assert nonfinite_notes(["a", "b", "c"]) == (
        "weights that are not finite (NaN, infinity): a and 2 more",
    )
