"""`smoothquant` on whole models: with 8-bit activations it loses less than rounding alone does."""

import pytest
import torch
from families import WINDOWS, build, divergence, make_model, one_thread, saved

from qeval.core.artifact import ModelRef
from qeval.core.errors import BuildError, UsageError
from qeval.engines.low_bits import round_activations
from qeval.models.linears import linears
from qeval.models.loading import load_model
from qeval.quant.base import METHODS
from qeval.quant.gptq import Gptq, GptqOptions
from qeval.quant.rtn import Rtn, RtnOptions
from qeval.quant.smoothquant import SmoothQuant, SmoothQuantOptions

_one_thread = pytest.fixture(autouse=True)(one_thread)


def with_outliers(folder, kind) -> ModelRef:
    """Two channels behind every norm of a block are 100 times as large, their weights 1/100: what LLMs
    do to the range of a token."""
    model = make_model(kind)
    for name, parameter in model.named_parameters():
        inside = any(part in name for part in (".layers.", ".h."))
        if inside and ("norm" in name or "ln_" in name) and parameter.shape == (64,):
            offset = 1.0 if kind == "gemma" and name.endswith("weight") else 0.0
            parameter.data[[7, 30]] = 100 * (parameter.data[[7, 30]] + offset) - offset
    for layer in linears(model):
        if any(part in layer.name for part in ("q_proj", "k_proj", "v_proj", "gate", "up_proj", "fc1")):
            layer.weight[:, [7, 30]] /= 100
        if any(part in layer.name for part in ("query_key_value", "h_to_4h", "c_attn", "c_fc")):
            layer.weight[:, [7, 30]] /= 100
    model.save_pretrained(folder)
    return ModelRef(kind, folder, "sha256:0", "float32")


@torch.no_grad()
def w8a8_divergence(artifact, model: ModelRef) -> float:
    """Mean KL divergence (nats) from the float model, with 8-bit activations."""
    whole = load_model(model.path, "float32", "cpu")
    other = load_model(artifact.path, "float32", "cpu")
    round_activations(other, num_bits=8, symmetric=True)
    ids = torch.tensor(WINDOWS)
    a, b = (m(ids).logits.log_softmax(-1) for m in (whole, other))
    return (a.exp() * (a - b)).sum(-1).mean().item()


@pytest.mark.parametrize("kind", ["llama", "opt", "gemma", "gpt2", "falcon"])
def test_outliers_of_the_inputs_cost_less(kind, tmp_path):
    model = with_outliers(tmp_path / "model", kind)
    rounded = build(Rtn(), RtnOptions(num_bits=8, symmetric=True), model, tmp_path / "rtn")
    smooth = build(SmoothQuant(), SmoothQuantOptions(), model, tmp_path / "smooth")
    plain, smoothed = (w8a8_divergence(x, model) for x in (rounded, smooth))
    assert smoothed < 0.5 * plain, (smoothed, plain)
    assert smooth.bpw == rounded.bpw and smooth.weight_bytes == rounded.weight_bytes
    told = {r.name for r in smooth.layers if r.note == "smoothed"}
    assert len(told) == {"llama": 10, "opt": 8, "gemma": 10, "gpt2": 4, "falcon": 4}[kind]


def test_any_solver_rounds_what_was_smoothed(tmp_path):
    model = saved(tmp_path / "model", "llama")
    grid = {"num_bits": 3, "group_size": 16, "symmetric": True}
    found = {}
    for solver in ("rtn", "gptq", "quantease"):
        options = SmoothQuantOptions(solver=solver, **grid)
        artifact = build(SmoothQuant(), options, model, tmp_path / solver)
        found[solver] = divergence(artifact, model)
    assert max(found["gptq"], found["quantease"]) < 0.9 * found["rtn"], found
    assert found["gptq"] != found["quantease"]
    alone = GptqOptions(backend="laboratory", **grid)
    assert divergence(build(Gptq(), alone, model, tmp_path / "g"), model) != found["gptq"]


def test_only_the_first_blocks(tmp_path):
    model = saved(tmp_path / "model", "opt")
    artifact = build(SmoothQuant(), SmoothQuantOptions(num_blocks=1), model, tmp_path / "a")
    after, before = (load_model(x.path, "float32", "cpu") for x in (artifact, model))
    for (name, new), old in zip(after.named_parameters(), before.parameters(), strict=True):
        part = name.partition("layers.0.")[2]
        changed = part.endswith(("proj.weight", "fc1.weight", "fc2.weight", "norm.weight"))
        assert torch.equal(new, old) != changed, name
    assert len(artifact.layers) == 6


def test_refused(tmp_path):
    model = saved(tmp_path / "model", "opt", do_layer_norm_before=False)
    message = r"no norm of this model can take a scale .*do_layer_norm_before: False"
    with pytest.raises(BuildError, match=message):
        build(SmoothQuant(), SmoothQuantOptions(), model, tmp_path / "a")
    with pytest.raises(UsageError, match=r"smoothquant: group_size 48 needs"):
        SmoothQuant().preflight(SmoothQuantOptions(group_size=48), model)
    for options in ({"alpha": 1.1}, {"alpha": -0.1}, {"solver": "spqr"}, {"num_bits": 16}):
        with pytest.raises(ValueError):
            SmoothQuantOptions(**options)
    assert METHODS["smoothquant"].Options is SmoothQuantOptions


def test_labels():
    label = SmoothQuant().label
    assert label(SmoothQuantOptions()) == "SmoothQuant W8A16"
    assert label(SmoothQuantOptions(alpha=0.85)) == "SmoothQuant 0.85 W8A16"
    more = SmoothQuantOptions(solver="gptq", num_bits=4, group_size=64, symmetric=False)
    assert label(more) == "SmoothQuant+GPTQ W4A16g64 asym"
