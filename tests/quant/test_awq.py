"""`awq` by GPTQModel: two architectures in 4 bits, reloaded and scored on the CPU (quantized.py)."""

import shutil
from importlib.metadata import version
from math import isfinite

import pytest
from pydantic import ValidationError

from qeval.core import extras
from qeval.core.artifact import Library
from qeval.core.errors import MissingExtraError, SeveralErrors, UsageError
from qeval.formats.describe import describe_packed
from qeval.models.weights import read_data, read_tensors
from qeval.quant.awq import Awq, AwqOptions

BUILT = {"llama-awq-4": 3.2e-2, "starcoder2-awq-4": 1.7e-2}  # divergence in nats, as measured


@pytest.mark.real
@pytest.mark.parametrize("name", BUILT)
def test_the_kernel_computes_with_weights_that_lie_on_their_grid(quantized, name):
    weights = quantized.weights(name)
    assert len(weights) == len(quantized.artifact(name).layers) == (14 if "llama" in name else 12)
    assert all(8 < w["levels"] <= 16 for w in weights.values())
    # 0.008 and 0.010 measured; the same float model in bfloat16 and float32: 0.007 and 0.009
    assert quantized.distance(quantized.twin(name), quantized.logits(name)) < 0.015


@pytest.mark.real
@pytest.mark.parametrize("name", BUILT)
def test_scales_that_went_into_the_operation_before_cancel(quantized, name):
    """What is left of the difference from the float weights is the rounding of 4 bits: 0.099 to 0.110
    of their norm measured."""
    weights = quantized.weights(name)
    assert all(0.08 < w["error"] < 0.13 for w in weights.values()), weights


@pytest.mark.real
def test_no_scale_crosses_an_activation(quantized):
    """GPTQModel would scale StarCoder2's c_fc by 1/s and c_proj by s, with a GELU between them. The
    bias of c_fc is not rounded: it tells."""
    artifact = quantized.artifact("starcoder2-awq-4")
    before = {t.name: read_data(t) for t in read_tensors(quantized.folder / "starcoder2")}
    after = {t.name: read_data(t) for t in read_tensors(artifact.path)}
    for block in ("model.layers.0", "model.layers.1"):
        name = f"{block}.mlp.c_fc.bias"
        assert after[name] == before[name]
        norm = f"{block}.post_attention_layernorm.weight"  # scales of norms are exact, and used
        assert after[norm] != before[norm]
    notes = {layer.name.partition(".layers.")[2]: layer.note for layer in artifact.layers}
    assert notes["0.mlp.c_proj"] == notes["1.mlp.c_proj"] == "no scale searched"
    assert notes["0.mlp.c_fc"] == ""


@pytest.mark.real
@pytest.mark.parametrize("name", BUILT)
def test_predictions_are_as_far_from_the_float_model_as_four_bits_make_them(quantized, name):
    assert BUILT[name] / 2 < quantized.divergence(name) < 1.5 * BUILT[name]


@pytest.mark.real
@pytest.mark.parametrize("name", BUILT)
def test_every_byte_of_the_files_is_counted(quantized, name):
    artifact = quantized.artifact(name)
    assert artifact.weight_bytes + artifact.embedding_bytes == quantized.data_bytes(name)
    for layer in artifact.layers:  # 4 bits, and for 128 of them a zero point and a scale in 16 bits
        assert 8 * layer.stored_bytes / (layer.shape[0] * layer.shape[1]) == 4 + (4 + 16) / 128
    assert artifact.bpw == 4.15625


@pytest.mark.real
def test_the_artifact_says_what_made_it_and_the_engine_what_runs_it(quantized):
    artifact = quantized.artifact("llama-awq-4")
    library = Library("gptqmodel", version("gptqmodel"))
    assert artifact.library == library
    assert artifact.format.label == "AWQ W4A16g128"
    assert artifact.calibration["n_tokens"] == 4 * 32
    assert quantized.steps("llama-awq-4")[-1] == [2, 2, "blocks"]
    assert [p.name for p in artifact.path.parent.iterdir()] == ["model"]  # no logs
    found = quantized.run("llama-awq-4")
    facts = found["facts"]
    assert (facts["kernel"], facts["kernels"]) == ("aten", {"TorchAtenAwqLinear": 14})
    assert found["notes"] == []
    # Grouped queries: v has fewer outputs than o has inputs, so that no scale can go into it.
    unscaled = {layer.name for layer in artifact.layers if layer.note == "no scale searched"}
    assert unscaled == {f"model.layers.{i}.self_attn.o_proj" for i in (0, 1)}
    others = [layer.loss for layer in artifact.layers if layer.name not in unscaled]
    assert all(loss is not None and isfinite(loss) and loss > 0 for loss in others)


@pytest.mark.real
def test_a_damaged_artifact_is_not_taken_for_whole(quantized, tmp_path):
    from qeval.core.errors import ModelError

    folder = shutil.copytree(quantized.artifact("llama-awq-4").path, tmp_path / "model")
    with (folder / "model.safetensors").open("ab") as file:
        file.write(bytes(8))
    with pytest.raises(ModelError, match=r"model\.safetensors: 8 bytes too long"):
        describe_packed(folder)


# -- before any job ---------------------------------------------------------------------------


def test_without_its_package_it_names_the_command(model_of, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'qeval\[gptqmodel\]'") as caught:
        Awq().preflight(AwqOptions(), model_of({"model.layers.0.mlp.up_proj": (256, 128)}))
    assert caught.value.exit_code == 2


def test_what_the_format_and_its_kernels_cannot_hold(model_of, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: True)
    shapes = {"model.layers.0.mlp.up_proj": (256, 128), "model.layers.0.mlp.down_proj": (100, 256)}
    model = model_of(shapes)
    with pytest.raises(
        UsageError,
        match=r"awq: group_size 128 needs .* outputs of 8; 1 linear is not: "
        r"model\.layers\.0\.mlp\.down_proj \[100, 256\]: this format cannot hold them",
    ):
        Awq().preflight(AwqOptions(), model)
    model.path.rename(model.path.with_name("before"))
    with pytest.raises(SeveralErrors, match=r"awq: .*not float32.*; awq: group_size 128 needs"):
        Awq().preflight(AwqOptions(), model_of(shapes, dtype="float32"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_bits": 8}, "num_bits 8: packed AWQ has 4 bits; others with backend: laboratory"),
        ({"group_size": 256}, "group_size 256: choose one of -1, 16, 32, 64, 128"),
        ({"backend": "auto-awq", "symmetric": True}, "asymmetric; leave it out"),
        ({"backend": "autoawq"}, "'gptqmodel', 'auto-awq' or 'laboratory'"),
        ({"calibration": {"seq_len": 1}}, "greater than or equal to 2"),
        ({"q_group_size": 128}, "not permitted"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValidationError, match=message):
        AwqOptions.model_validate(options)


def test_labels():
    assert Awq().label(AwqOptions()) == "AWQ W4A16g128"
    assert Awq().label(AwqOptions(group_size=-1, symmetric=True)) == "AWQ W4A16 sym"
    assert Awq().label(AwqOptions(backend="auto-awq")) == "AWQ W4A16g128 (AutoAWQ)"
