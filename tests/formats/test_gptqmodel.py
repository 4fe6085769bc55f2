"""GPTQ and AWQ checkpoints on GPTQModel's kernels, whole or refused; and what transformers alone makes
of the same files. The checkpoints are those of tests/helpers/quantized.py."""

from pathlib import Path

import numpy as np
import pytest


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("llama-gptq-4", 0),  # the same kernel
        ("starcoder2-gptq-4", 0),
        ("llama-awq-4", 0),
        ("llama-gptq-8", 0.025),  # 0.012 to 0.016 measured; bfloat16 alone 0.007 to 0.009
        ("starcoder2-gptq-8", 0.025),
        ("llama-gptq-3", 0.025),
    ],
)
def test_transformers_without_qeval_gives_the_same_logits(quantized, name, bound):
    found, logits = quantized.plain(name)
    assert found["missing_keys"] == found["unexpected_keys"] == []
    assert quantized.distance(quantized.logits(name), logits) <= bound
    assert found["kernels"] == list(quantized.run(name)["facts"]["kernels"])


@pytest.mark.real
def test_what_transformers_cannot_load_is_an_error_and_not_a_row_of_nan(quantized):
    """It wants scales of StarCoder2's activation, which GPTQModel does not make and does not miss.
    Where qeval loads by transformers, it refuses what a user there gets as NaN."""
    found, logits = quantized.plain("starcoder2-awq-4")
    assert not np.isfinite(logits).any()
    assert found["missing_keys"] == [f"model.layers.{i}.mlp.act.scales" for i in (0, 1)]
    error = quantized.run_error("awq-by-transformers")
    assert "2 missing keys in its weights, first model.layers.0.mlp.act.scales" in error
    assert np.isfinite(quantized.logits("starcoder2-awq-4")).all()


@pytest.mark.real
@pytest.mark.parametrize(
    ("variant", "name", "kernels"),
    [
        ("gptq-on-torch", "llama-gptq-4", {"TorchLinear": 14}),
        ("awq-on-torch", "llama-awq-4", {"AwqTorchLinear": 14}),
    ],
)
def test_a_named_kernel_runs_and_another_gives_the_same_numbers(quantized, variant, name, kernels):
    facts = quantized.run(variant)["facts"]
    assert (facts["kernel"], facts["kernels"]) == ("torch", kernels)
    # 0.0115 measured; bfloat16 alone 0.009
    assert 0 < quantized.distance(quantized.logits(name), quantized.logits(variant)) < 0.02


def test_a_kernel_that_takes_one_file_gets_one(tmp_path):
    import json

    import torch
    from safetensors.torch import load_file, save_file

    from qeval.formats.gptqmodel import _readable

    files = {name: f"model-0000{i}-of-00002.safetensors" for i, name in enumerate("ab", 1)}
    for name, file in files.items():
        save_file({name: torch.arange(4)}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    with _readable(tmp_path, one_file=False) as folder:
        assert folder == tmp_path
    with _readable(tmp_path, one_file=True) as folder:
        (file,) = folder.glob("*")
        found = load_file(file)
        assert list(found) == list("ab") and found["b"].tolist() == [0, 1, 2, 3]


@pytest.mark.real
def test_a_kernel_that_this_machine_lacks_is_named_with_its_reason(quantized):
    error = quantized.run_error("gptq-on-marlin")
    assert error.endswith("no kernel takes these weights on cpu: marlin: Marlin kernel requires CUDA.")


@pytest.mark.real
@pytest.mark.parametrize(
    ("variant", "apart", "linears", "products"),
    [("gptq-merged", "llama-gptq-4", 14, 8), ("awq-merged", "starcoder2-awq-4", 12, 8)],
)
def test_linears_of_one_input_are_one_product_and_the_same_model(
    quantized, variant, apart, linears, products
):
    assert np.array_equal(quantized.logits(variant), quantized.logits(apart))
    found, before = (quantized.run(name) for name in (variant, apart))
    assert list(before["facts"]["kernels"].values()) == [linears]
    assert list(found["facts"]["kernels"].values()) == [products]
    assert found["resident"][0] <= before["resident"][0] * 1.01


def test_a_task_that_looks_at_single_linears_finds_each_by_its_name():
    from qeval.core.settings import EngineSettings
    from qeval.tasks.base import TASKS
    from qeval.worker import _settings

    apart = {n for n in TASKS if _settings(EngineSettings(), TASKS[n].needs).layers_apart}
    assert apart == {"tensor_stats"}


@pytest.mark.real
@pytest.mark.parametrize("variant", ["gptq-in-bin", "gptq-with-zeros"])
def test_the_same_tensors_in_another_file_are_the_same_model(quantized, variant):
    """In a .bin file; and with the bias of zeros that AutoGPTQ gave to every linear."""
    assert np.array_equal(quantized.logits(variant), quantized.logits("llama-gptq-4"))
    assert quantized.run(variant)["facts"]["kernel"] == "aten"


@pytest.mark.real
@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("gptq-without-qweight", "ModelError: .*model.layers.1.mlp.up_proj.qzeros is I32, and no part"),
        ("gptq-without-norm", "EngineError: .*1 missing keys, first model.norm.weight$"),
        ("gptq-without-bias", "EngineError: .*1 missing keys, first model.layers.1.mlp.c_fc.bias$"),
        ("gptq-with-more", "EngineError: .*1 unexpected keys, first model.layers.1.mlp.extra.weight$"),
        ("gptq-with-bias", "EngineError: .*1 unexpected keys, .* model.layers.1.mlp.down_proj.bias$"),
        ("gptq-cut", r"ModelError: .*model\.safetensors: truncated: .*download or copy it again$"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused_by_the_name_of_what_is_wrong(
    quantized, variant, message
):
    import re

    error = quantized.run_error(variant)
    assert re.match(message, error) and "\n" not in error


def test_a_quantized_linear_that_stayed_a_float_one_is_named(monkeypatch):
    """As of a library that passes over what it does not know: its weights would be random."""
    from torch import nn

    from qeval.core.artifact import Artifact, LayerReport
    from qeval.core.errors import EngineError
    from qeval.formats.gptqmodel import check_whole
    from qeval.models import weights

    model = nn.ModuleDict({"up_proj": nn.Linear(4, 4, bias=False)})
    names = ("up_proj.qweight", "up_proj.qzeros", "up_proj.scales")
    found = [weights.Tensor(name, "I32", (1,), 4) for name in names]
    monkeypatch.setattr(weights, "read_tensors", lambda folder: found)
    layers = tuple(LayerReport(name, (4, 4), "int4", 1) for name in ("up_proj", "gone"))
    artifact = Artifact(Path("folder"), "hf", False, 1, 1, None, None, layers=layers)
    with pytest.raises(EngineError, match="folder: 2 quantized linears not loaded, first gone"):
        check_whole(model, artifact)
