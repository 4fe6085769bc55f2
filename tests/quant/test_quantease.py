"""`quantease` and `gptq` with ``backend: laboratory`` on whole models of every family."""

import re

import pytest
import torch
from families import MIXTURES, SHAPES, WINDOWS, build, divergence, one_thread, saved

from qeval.core.artifact import ModelRef
from qeval.core.errors import BuildError, UsageError
from qeval.formats import affine
from qeval.models.experts import expert_of, experts_as_linears
from qeval.models.linears import linears
from qeval.models.loading import load_model
from qeval.quant.base import METHODS
from qeval.quant.gptq import Gptq, GptqOptions
from qeval.quant.quantease import QuantEase, QuantEaseOptions
from qeval.quant.rtn import Rtn, RtnOptions

_one_thread = pytest.fixture(autouse=True)(one_thread)

FAMILIES = ("llama", "starcoder2", "opt", "bloom", "falcon", "gpt2", "qwen2", *MIXTURES)
GRID = {"num_bits": 3, "group_size": 16}


def lab(**options):
    return GptqOptions(backend="laboratory", **options)


@pytest.mark.parametrize("kind", FAMILIES)
def test_both_predict_better_than_rtn(kind, tmp_path):
    model = saved(tmp_path / "model", kind)
    rows = {
        "rtn": (Rtn(), RtnOptions(**GRID)),
        "gptq": (Gptq(), lab(**GRID, symmetric=False, act_order=True)),
    }
    if kind in SHAPES:  # the driver is GPTQ's
        rows["quantease"] = (QuantEase(), QuantEaseOptions(**GRID, sweeps=6))
    found = {}
    for name, (method, options) in rows.items():
        artifact = build(method, options, model, tmp_path / name)
        assert artifact.simulated and artifact.engine == "hf"
        assert sorted(r.name for r in artifact.layers) == _linears(model)
        found[name] = divergence(artifact, model)
    worst = 0.95 * found.pop("rtn")
    assert all(moved < worst for moved in found.values()), (found, worst)


def test_static_groups_cost_no_index_and_five_bits_and_the_first_block_are_the_laboratorys(tmp_path):
    model = saved(tmp_path / "model", "llama")
    grid = {"num_bits": 5, "group_size": 32, "symmetric": False, "act_order": True, "num_blocks": 1}
    fitted, static = (
        build(Gptq(), lab(**grid, static_groups=s), model, tmp_path / str(s)) for s in (False, True)
    )
    assert {r.kind for r in static.layers} == {"int5"}
    assert all(r.name.startswith("model.layers.0.") for r in static.layers)
    for a, b in zip(fitted.layers, static.layers, strict=True):
        assert a.stored_bytes == b.stored_bytes + 4 * a.shape[1]  # 32 bits an input: its group
    assert divergence(static, model) < 0.1


def _float(model: ModelRef):
    return load_model(model.path, "float32", "cpu")


def _linears(model: ModelRef) -> list[str]:
    whole = _float(model)
    with experts_as_linears(whole):
        return sorted(x.name for x in linears(whole))


@pytest.mark.parametrize("kind", ["mixtral", "deepseek_v2"])
def test_experts_with_too_few_tokens_are_counted(kind, tmp_path):
    model = saved(tmp_path / "model", kind)
    artifact = build(Gptq(), lab(num_bits=3, group_size=16), model, tmp_path / "a", WINDOWS[:4])
    tokens = {}
    for r in artifact.layers:
        expert, seen = expert_of(r.name), re.search(r"(\d+|no) calibration token", r.note)
        if expert and seen:
            tokens.setdefault(expert, set()).add(seen[1])
    n = 6 * (2 if kind == "mixtral" else 1)
    unseen = [e for e, counts in tokens.items() if counts == {"no"}]
    assert len(unseen) == n // 6 and len(unseen) < len(tokens) < n
    assert artifact.notes[-1] == (
        f"{len(tokens)} of {n} experts saw fewer calibration tokens than they have inputs; "
        f"{len(unseen)} of these saw none: quantized by their weights alone"
    )
    assert 0 < artifact.details["layers"]["worst_relative_loss"] < 1
    told = artifact.details["layers"]["tokens_of_experts"]
    assert told["fewest"] == 0 < told["median"] < told["most"] <= 4 * 64
    whole = build(Gptq(), lab(num_bits=3, group_size=16), model, tmp_path / "b", WINDOWS * 3)
    assert whole.notes[-1].startswith(f"{n // 6} of {n} experts saw fewer")


def test_more_work_loses_less(tmp_path):
    model = saved(tmp_path / "model", "opt")
    told = {
        "dense": {},
        "from gptq": {"init": "gptq"},
        "outliers": {"init": "gptq", "outliers": 0.02},
    }
    losses = {}
    for name, more in told.items():
        options = QuantEaseOptions(num_bits=3, sweeps=9, **more)
        artifact = build(QuantEase(), options, model, tmp_path / name)
        losses[name] = artifact.details["layers"]["mean_relative_loss"]
    assert losses["outliers"] < losses["from gptq"] < losses["dense"]


def test_weights_lie_on_the_grid_but_for_the_outliers(tmp_path):
    model = saved(tmp_path / "model", "gpt2", num_hidden_layers=1)
    options = QuantEaseOptions(num_bits=2, group_size=16, sweeps=3, outliers=0.02)
    artifact = build(QuantEase(), options, model, tmp_path / "a")
    for layer, report in zip(
        linears(load_model(artifact.path, "float32", "cpu")), artifact.layers, strict=True
    ):
        rows, columns = report.shape
        assert layer.weight.shape == report.shape
        groups = layer.weight.reshape(-1, 16)
        more = sum(max(0, len(g.unique()) - 4) for g in groups)
        n = round(0.02 * rows * columns)
        assert 0 < more <= n
        assert report.note.startswith(f"{n / rows / columns:.2%} outliers")
        dense = affine.stored_bytes(report.shape, 2, 16, False)
        assert report.stored_bytes == dense + 4 * n + 4 * (rows + 1)
    assert artifact.details["layers"]["outlier_share"] == pytest.approx(0.02, rel=0.02)


def test_the_artifact_says_what_was_done(tmp_path):
    model = saved(tmp_path / "model", "llama")
    options = QuantEaseOptions(num_bits=4, sweeps=2, num_blocks=1)
    artifact = build(QuantEase(), options, model, tmp_path / "a", [WINDOWS[0][:40]])
    assert artifact.calibration == {"dataset": "test", "n_tokens": 40}
    assert artifact.details["layers"]["worst_layer"].startswith("model.layers.0.")
    assert artifact.notes[:2] == (
        "model.layers.0.self_attn.q_proj and 6 more: fewer calibration tokens than inputs",
        "only the first 1 decoder blocks are quantized",
    )
    assert len(artifact.layers) == 7
    after, before = load_model(artifact.path, "float32", "cpu"), _float(model)
    for (name, new), old in zip(after.named_parameters(), before.parameters(), strict=True):
        changed = "layers.0." in name and name.endswith("proj.weight")
        assert torch.equal(new, old) != changed, name


def test_half_precision_models(tmp_path):
    model = saved(tmp_path / "model", "starcoder2", num_hidden_layers=1)
    model = ModelRef(model.id, model.path, model.identity, "bfloat16")
    artifact = build(QuantEase(), QuantEaseOptions(sweeps=2), model, tmp_path / "a")
    assert load_model(artifact.path, "bfloat16", "cpu").dtype == torch.bfloat16
    assert all(r.mse > 0 for r in artifact.layers)


def test_the_laboratorys_gptq_needs_no_library_and_no_kernel(tmp_path, monkeypatch):
    monkeypatch.setattr("qeval.core.extras.require", lambda *_: pytest.fail("asked for a package"))
    model = saved(tmp_path / "model", "llama")  # float32, which no packed kernel computes in
    Gptq().preflight(lab(group_size=16), model)
    with pytest.raises(UsageError, match=r"group_size 64 .* model\.layers\.\{0-1\}\.mlp\.down_proj"):
        Gptq().preflight(lab(group_size=64), model)
    assert lab().execution() == {}
    assert Gptq().environment(lab()) is None
    with pytest.raises(ValueError, match="kernel: no kernel runs simulated weights"):
        lab(kernel="torch")


def test_preflight_and_build_refuse_a_group_that_does_not_divide(tmp_path):
    model = saved(tmp_path / "model", "llama")
    options = QuantEaseOptions(group_size=64)
    with pytest.raises(UsageError, match=r"quantease: group_size 64 needs .* \[64, 96\]: .*32 fits"):
        QuantEase().preflight(options, model)
    QuantEase().preflight(QuantEaseOptions(group_size=32), model)
    with pytest.raises(BuildError, match="down_proj: group_size 64 does not divide 96 inputs"):
        build(QuantEase(), options, model, tmp_path / "a")


def test_options():
    with pytest.raises(ValueError, match="give their share"):
        QuantEaseOptions(structured=True)
    with pytest.raises(ValueError, match="positive number of inputs"):
        QuantEaseOptions(group_size=0)
    assert METHODS["quantease"].Options is QuantEaseOptions


def test_labels():
    label = QuantEase().label
    assert label(QuantEaseOptions(num_bits=3)) == "QuantEase W3A16"
    assert label(QuantEaseOptions(num_bits=3, outliers=0.01)) == "QuantEase W3A16 +1% outliers"
    structured = QuantEaseOptions(outliers=0.005, structured=True, group_size=128)
    assert label(structured) == "QuantEase W4A16g128 +0.5% outlier columns"
    assert label(QuantEaseOptions(init="gptq", symmetric=True)) == "GPTQ+QuantEase W4A16 sym"
    assert label(QuantEaseOptions(num_blocks=2)) == "QuantEase W4A16 first 2 blocks"
    assert Gptq().label(lab()) == "GPTQ W4A16g128 (laboratory)"
    assert Gptq().label(lab(act_order=True)) == "GPTQ W4A16g128 act-order (laboratory)"
