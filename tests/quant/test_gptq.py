"""`gptq` by GPTQModel: two architectures in 8, 4 and 3 bits, reloaded and scored on the CPU.

The builds are those of quantized.py: hidden size 256, two blocks, random weights. tests/engines/
test_gptqmodel.py has what the kernels and other loaders make of them; AutoGPTQ is in test_auto_gptq.py.
"""

import json
from importlib.metadata import version
from math import isfinite

import pytest
from pydantic import ValidationError

from qeval.cli.run import run_spec
from qeval.core import extras
from qeval.core.artifact import Library
from qeval.core.errors import ModelError, PreflightError, UsageError
from qeval.formats.describe import describe_packed
from qeval.quant.gptq import Gptq, GptqOptions
from qeval.quant.libraries.gptqmodel import _with_log
from qeval.store.artifacts import ArtifactCache

BUILT = {  # bits, group, distance of the weights from the float ones
    "llama-gptq-8": (8, 128, 0.009),
    "llama-gptq-4": (4, 128, 0.152),
    "llama-gptq-3": (
        3,
        256,
        0.347,
    ),  # asymmetric, act-order, one scale a channel (of 512 in one linear)
    "starcoder2-gptq-8": (8, 128, 0.009),
    "starcoder2-gptq-4": (4, 128, 0.151),
}


@pytest.mark.real
@pytest.mark.parametrize("name", BUILT)
def test_the_kernel_computes_with_weights_that_lie_on_their_grid(quantized, name):
    bits, _, error = BUILT[name]
    weights = quantized.weights(name)
    assert len(weights) == len(quantized.artifact(name).layers) == (14 if "llama" in name else 12)
    assert all(w["levels"] <= 2**bits for w in weights.values())
    assert bits == 8 or all(w["levels"] > 2 ** (bits - 1) for w in weights.values())
    assert max(w["error"] for w in weights.values()) < 1.2 * error
    # 0.010 to 0.013 measured; the same float model in bfloat16 and float32: 0.007 to 0.009
    assert quantized.distance(quantized.twin(name), quantized.logits(name)) < 0.02


@pytest.mark.real
@pytest.mark.parametrize(
    ("model", "eight", "four"), [("llama", 2e-4, 3.3e-2), ("starcoder2", 1e-4, 1.5e-2)]
)
def test_fewer_bits_are_farther_from_the_float_model(quantized, model, eight, four):
    """Mean divergence in nats, as measured; the model itself in bfloat16 is 2e-5 away."""
    assert quantized.divergence(f"{model}-bfloat16") < 5e-5
    assert quantized.divergence(f"{model}-gptq-8") < 2 * eight
    assert four / 2 < quantized.divergence(f"{model}-gptq-4") < 1.5 * four
    if model == "llama":  # 0.14
        assert 2 * four < quantized.divergence("llama-gptq-3") < 0.21


@pytest.mark.real
@pytest.mark.parametrize("model", ["llama", "starcoder2"])
def test_eight_bits_score_as_the_float_model_does(quantized, model):
    import numpy as np

    wanted, found = (np.array(quantized.run(f"{model}-{k}")["nll"]) for k in ("float32", "gptq-8"))
    assert abs(found.mean() - wanted.mean()) < 0.003  # nats a token; 0.001 measured
    logits = quantized.logits(f"{model}-gptq-8").astype(float)[:, :-1]
    ids = np.array(quantized.probe_ids())[:, 1:, None]
    logits -= np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    of_logits = -np.take_along_axis(logits, ids, -1)[..., 0]
    assert np.abs(of_logits - found).max() < 0.1  # one window at a time, and all in a batch


@pytest.mark.real
@pytest.mark.parametrize("name", BUILT)
def test_the_loss_on_the_calibration_inputs_is_below_that_of_rounding_to_nearest(quantized, name):
    """Of the linears that read the first norm, on the very grid of the file; 0.66 to 0.69 measured."""
    weights = [w for w in quantized.weights(name).values() if "loss" in w]
    assert len(weights) == 3
    assert all(0.4 < w["loss"] / w["nearest"] < 0.8 for w in weights)
    losses = [layer.loss for layer in quantized.artifact(name).layers]
    assert all(loss is not None and isfinite(loss) and loss > 0 for loss in losses)


@pytest.mark.real
@pytest.mark.parametrize("name", BUILT)
def test_every_byte_of_the_files_is_counted(quantized, name):
    bits, group, _ = BUILT[name]
    artifact = quantized.artifact(name)
    total = quantized.data_bytes(name)
    assert artifact.weight_bytes + artifact.embedding_bytes == total
    for layer in artifact.layers:
        out, into = layer.shape
        groups = 1 if name == "llama-gptq-3" else into // group
        index = 4 * into
        assert layer.stored_bytes == out * into * bits / 8 + groups * out * (2 + bits / 8) + index
    n = sum(layer.shape[0] * layer.shape[1] for layer in artifact.layers)
    assert artifact.bpw == 8 * sum(layer.stored_bytes for layer in artifact.layers) / n
    llama = name.startswith("llama")  # an untied head; no biases
    embedding = (2 if llama else 1) * 512 * 256
    rest = 5 * 256 if llama else 10 * 256 + 2 * (256 + 2 * 128 + 256 + 512 + 256)
    assert artifact.embedding_bytes == 2 * embedding
    assert artifact.bpw_file == 8 * total / (n + embedding + rest)
    assert not artifact.simulated


@pytest.mark.real
def test_the_artifact_says_what_made_it_and_the_engine_what_runs_it(quantized):
    artifact = quantized.artifact("llama-gptq-4")
    library = Library("gptqmodel", version("gptqmodel"))
    assert artifact.library == library
    assert artifact.format.label == "GPTQ W4A16g128"
    calibration = artifact.calibration
    assert (calibration["n_samples"], calibration["seq_len"]) == (16, 64)
    assert (calibration["n_tokens"], calibration["text_sha256"]) == (1024, "0" * 64)
    assert artifact.notes == ()
    assert quantized.steps("llama-gptq-4") == [[1, 2, "blocks"], [2, 2, "blocks"]]
    folder = artifact.path
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= {
        p.name for p in folder.iterdir()
    }
    assert [p.name for p in folder.parent.iterdir()] == ["model"]  # no logs, no working files
    four, eight = (quantized.run(f"llama-gptq-{n}")["facts"] for n in (4, 8))
    assert (four["kernel"], four["kernels"]) == ("aten", {"TorchAtenLinear": 14})
    assert (eight["kernel"], eight["kernels"]) == ("torch", {"TorchLinear": 14})
    assert "only supports `[4]` bits" in eight["kernels_refused"]["aten"]
    assert quantized.run("llama-gptq-4")["notes"] == []


# -- fall-backs -------------------------------------------------------------------------------


@pytest.mark.real
def test_a_damping_that_was_raised_is_in_every_layer_and_in_a_note(quantized):
    """16 tokens are too few for percdamp 1e-7: H has no Cholesky factor."""
    artifact = quantized.artifact("llama-gptq-damped")
    assert artifact.notes == ("14 of 14 linears needed a damping above percdamp 1e-07",)
    assert all(layer.note.startswith("damping raised to 0.0") for layer in artifact.layers)


@pytest.mark.real
def test_linears_that_no_token_reached_are_rounded_to_nearest_and_say_so(quantized):
    artifact = quantized.artifact("mixtral-gptq-8")
    fallen = [layer for layer in artifact.layers if layer.note]
    assert {layer.note for layer in fallen} == {"rounded to nearest: too few calibration tokens"}
    assert all("experts" in layer.name and layer.loss is None for layer in fallen)
    assert 3 <= len(fallen) < 12
    assert all(layer.loss is not None for layer in artifact.layers if layer not in fallen)
    said = f"{len(fallen)} of 16 linears rounded to nearest: too few calibration tokens reached them"
    router = "1 of 17 linears left as BF16, not counted in bpw: model.layers.0.mlp.gate"
    assert artifact.notes == (router, said)
    assert artifact.weight_bytes + artifact.embedding_bytes == quantized.data_bytes("mixtral-gptq-8")
    assert quantized.divergence("mixtral-gptq-8") < 5e-4  # 2e-4 measured


@pytest.mark.real
def test_windows_that_are_longer_than_the_model_are_cut_with_a_note(quantized):
    artifact = quantized.artifact("starcoder2-gptq-8")
    note = "GPTQModel cut the calibration windows of 600 tokens to the model's 512"
    assert artifact.notes == (note,)
    assert artifact.calibration["n_tokens"] == 2 * 512


def test_what_the_librarys_log_says_of_a_linear():
    from types import SimpleNamespace

    from qeval.core.artifact import LayerReport

    def row(module: str, loss: str, damp: str = "0.01") -> dict[str, str]:
        return {"layer": 0, "module": module, "loss": loss, "damp": damp}

    names = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj")
    layers = tuple(LayerReport(f"model.layers.0.{n}", (2, 2), "int4", 1) for n in names)
    log = {"gptq": [row("q_proj", "0.5"), row("k_proj", "fallback(rtn): 0.1", "0")]}
    log["gptq"] += [row("v_proj", "0.25", "0.02"), row("o_proj", "not applicable"), {"time": 1}]
    reports, notes = _with_log(layers, log, SimpleNamespace(damp_percent=0.01))
    assert [(r.loss, r.note) for r in reports] == [
        (0.5, ""),
        (None, "rounded to nearest: too few calibration tokens"),
        (0.25, "damping raised to 0.02"),
        (None, "no scale searched"),
        (None, ""),
    ]
    assert notes == (
        "1 of 5 linears rounded to nearest: too few calibration tokens reached them",
        "1 of 5 linears needed a damping above percdamp 0.01",
    )


# -- failures ---------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unknown-gptq-4", "BuildError: GPTQModel cannot quantize unknown: ValueError: .*biogpt"),
        (
            "short-gptq-4",
            r"DataError: .*short\.txt: 17 tokens are not enough for a window of 2048: use",
        ),
        ("ten-gptq-4", "BuildError: .*windows of fewer than 11 tokens: set calibration: {seq_len: 11}"),
    ],
)
def test_what_cannot_be_built_is_one_line(quantized, name, message):
    import re

    error = quantized.build_error(name)
    assert re.match(message, error) and "\n" not in error


@pytest.mark.real
def test_an_error_in_a_thread_of_the_library_is_the_builds_and_not_the_end_of_the_process(quantized):
    quantized.require("gptq")
    quantized.step("float")
    assert quantized.step("build gptq") == 0
    error = json.loads((quantized.folder / "failing.json").read_text())["error"]
    assert error == "BuildError: GPTQModel cannot quantize llama: ValueError: no luck"
    assert list((quantized.folder / "failing").iterdir()) == []  # no logs
    assert not (quantized.folder / "logs").exists()  # its working folder


@pytest.mark.real
def test_a_build_that_is_killed_leaves_no_artifact(quantized):
    quantized.require("gptq")
    quantized.step("float")
    assert quantized.step("killed") == -9
    cache = ArtifactCache(quantized.folder / "cache")
    (left,) = cache.folder.glob(".building-*")
    assert cache.load("k" * 64) is None and cache.entries() == []
    with cache.building("k" * 64) as out:
        assert list(out.iterdir()) == []
        assert not left.exists()


@pytest.mark.real
def test_a_corrupted_file_is_named(quantized, tmp_path):
    import shutil

    folder = shutil.copytree(quantized.artifact("llama-gptq-4").path, tmp_path / "model")
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"model\.safetensors: truncated: .*copy it again"):
        describe_packed(folder)
    file.write_bytes(whole.replace(b'"I32"', b'"I16"', 1))
    with pytest.raises(ModelError, match=r"model\.safetensors: .* I16 .*damaged"):
        describe_packed(folder)


# -- before any job ---------------------------------------------------------------------------


def test_without_its_package_nothing_starts(model_of, tmp_path, monkeypatch):
    """By the whole of `qeval run`, with the command that installs it."""
    there = extras.find_spec
    gone = lambda name: None if name == "gptqmodel" else there(name)  # noqa: E731
    monkeypatch.setattr(extras, "find_spec", gone)
    monkeypatch.chdir(tmp_path)
    model = model_of({"model.layers.0.mlp.up_proj": (256, 128)})
    (tmp_path / "spec.yaml").write_text(
        f"name: s\nmodels: [{model.path}]\nquantizations: [gptq: 4]\n"
        "tasks: [{perplexity: {dataset: pydoc}}]\n"
    )
    message = r"(?s)'gptqmodel' is not installed.*pip install 'qeval\[gptqmodel\]'"
    with pytest.raises(PreflightError, match=message):
        run_spec(tmp_path / "spec.yaml")


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: True)


def test_float32_is_refused(model_of, installed):
    model = model_of({"model.layers.0.mlp.up_proj": (256, 128)}, dtype="float32")
    with pytest.raises(UsageError, match=r"gptq: .*not float32 \(m\): set dtype: bfloat16"):
        Gptq().preflight(GptqOptions(), model)


def test_widths_that_the_format_cannot_hold_are_all_named(model_of, installed):
    shapes = {f"model.layers.{i}.self_attn.q_proj": (128, 128) for i in range(3)}
    shapes |= {f"model.layers.{i}.mlp.down_proj": (128, 192) for i in range(3)}
    shapes |= {"model.layers.1.mlp.up_proj": (200, 128), "model.layers.1.mlp.gate": (8, 128)}
    shapes |= {f"model.layers.1.mlp.experts.{i}.down_proj": (128, 128) for i in range(8)}  # its router
    model = model_of(shapes)
    with pytest.raises(
        UsageError,
        match=r"gptq: group_size 128 needs inputs that are multiples of 128, outputs of 32; "
        r"4 linears are not: model\.layers\.\{0-2\}\.mlp\.down_proj \[128, 192\], "
        r"model\.layers\.1\.mlp\.up_proj \[200, 128\]: this format cannot hold them",
    ):
        Gptq().preflight(GptqOptions(), model)
    del shapes["model.layers.1.mlp.up_proj"]
    model.path.rename(model.path.with_name("before"))
    model = model_of(shapes)
    with pytest.raises(UsageError, match="group_size 64 fits"):
        Gptq().preflight(GptqOptions(), model)
    Gptq().preflight(GptqOptions(group_size=64), model)
    Gptq().preflight(GptqOptions(group_size=-1), model)


@pytest.mark.real
def test_a_model_that_is_packed_already_is_refused(quantized, tmp_path, monkeypatch):
    packed = quantized.artifact("llama-gptq-4").path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text(
        f"name: s\nmodels: [{packed}]\nquantizations: [gptq: 4]\n"
        "tasks: [{perplexity: {dataset: pydoc}}]\n"
    )
    with pytest.raises(
        PreflightError, match=r"gptq: .* is packed already \(GPTQ W4A16g128\): it needs"
    ):
        run_spec(tmp_path / "spec.yaml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_bits": 5}, "num_bits: backend gptqmodel packs 2, 3, 4, 8, not 5"),
        ({"num_bits": 9, "backend": "laboratory"}, "less than or equal to 8"),
        ({"num_blocks": 1}, "num_blocks: backend gptqmodel always packs the whole model"),
        ({"group_size": 0, "backend": "laboratory"}, r"group_size\n.*must be a positive number"),
        ({"group_size": 100}, "group_size: backend gptqmodel packs -1, 16, 32"),
        ({"percdamp": 0.0}, "greater than 0"),
        ({"percdamp": 1.0}, "less than 1"),
        ({"kernel": "cutlass"}, "'auto', 'machete', 'marlin'"),
        ({"backend": "auto-gptq", "symmetric": False}, "asymmetric zero points wrong"),
        ({"calibration": {"n_samples": 0}}, "greater than or equal to 1"),
        ({"wbits": 4}, "not permitted"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValidationError, match=message):
        GptqOptions.model_validate(options)


def test_labels_and_what_a_kernel_changes():
    method = Gptq()
    assert method.label(GptqOptions()) == "GPTQ W4A16g128"
    asked = GptqOptions(num_bits=3, group_size=-1, act_order=True, symmetric=False)
    assert method.label(asked) == "GPTQ W3A16 act-order asym"
    assert method.label(GptqOptions(backend="auto-gptq")) == "GPTQ W4A16g128 (AutoGPTQ)"
    assert GptqOptions(kernel="torch").execution() == {"kernel": "torch"}
