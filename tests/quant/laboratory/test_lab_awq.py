"""`awq` with ``backend: laboratory`` on whole models: better than RTN, every byte counted."""

import pytest
import torch
from families import FAMILIES, MIXTURES, WINDOWS, build, divergence, make_model, one_thread, saved

from qeval.core.artifact import ModelRef
from qeval.core.errors import BuildError, UsageError
from qeval.formats import affine
from qeval.models.linears import linears
from qeval.models.loading import load_model
from qeval.quant.awq import Awq, AwqOptions
from qeval.quant.rtn import Rtn, RtnOptions

_one_thread = pytest.fixture(autouse=True)(one_thread)

GRID = {"num_bits": 3, "group_size": 16}
NORMS = ("norm", "ln_")


def lab(**options):
    return AwqOptions(backend="laboratory", **options)


def with_salient_channels(folder, kind, **config) -> ModelRef:
    """A model whose norms hand on three channels that are 12 times as large as the others."""
    model = make_model(kind, **config)
    for name, parameter in model.named_parameters():
        inside = any(part in name for part in (".layers.", ".h."))
        if inside and parameter.shape == (64,) and name.endswith("weight"):
            offset = 1.0 if kind == "gemma" else 0.0
            parameter.data[[3, 20, 41]] = 12.0 * (parameter.data[[3, 20, 41]] + offset) - offset
    model.save_pretrained(folder)
    return ModelRef(kind, folder, "sha256:0", "float32")


@pytest.mark.parametrize("kind", FAMILIES)
def test_salient_channels_survive_where_rtn_loses_them(kind, tmp_path):
    model = with_salient_channels(tmp_path / "model", kind)
    rounded = build(Rtn(), RtnOptions(**GRID), model, tmp_path / "rtn")
    scaled = build(Awq(), lab(**GRID), model, tmp_path / "awq")
    assert scaled.simulated and scaled.engine == "hf"
    assert sorted(r.name for r in scaled.layers) == sorted(r.name for r in rounded.layers)
    found = divergence(scaled, model), divergence(rounded, model)
    assert found[0] < (0.9 if kind in MIXTURES else 0.7) * found[1], found


def test_what_was_done_to_each_layer_is_reported(tmp_path):
    model = saved(tmp_path / "model", "starcoder2")  # grouped queries, a GELU before c_proj
    artifact = build(Awq(), lab(**GRID), model, tmp_path / "a")
    notes = {r.name.removeprefix("model.layers."): r.note for r in artifact.layers}
    assert len(notes) == 12
    for i in (0, 1):
        same = {notes[f"{i}.self_attn.{x}_proj"].split(";")[0] for x in "qkv"}
        assert len(same) == 1 and same.pop().startswith("scale mean|x|^0")
        assert notes[f"{i}.mlp.c_fc"].startswith("scale mean|x|^0")
        few = "no scale: self_attn.v_proj has 32 outputs for 64 inputs; "
        assert notes[f"{i}.self_attn.o_proj"].startswith(few)
        gelu = "no scale: what lies before is an activation function or fused; "
        assert notes[f"{i}.mlp.c_proj"].startswith(gelu)
        for name in ("v_proj", "o_proj"):
            assert "% of the groups clipped" in notes[f"{i}.self_attn.{name}"]
        for name in ("q_proj", "k_proj"):
            assert "clipped" not in notes[f"{i}.self_attn.{name}"]
    assert artifact.notes[:2] == (
        "model.layers.0.self_attn.o_proj and 1 more: " + few[:-2],
        "model.layers.0.mlp.c_proj and 1 more: " + gelu[:-2],
    )
    assert artifact.calibration["n_tokens"] == sum(map(len, WINDOWS))
    assert 0 < artifact.details["layers"]["mean_relative_loss"] < 0.1


@pytest.mark.parametrize("options", [GRID, {"num_bits": 2, "group_size": 32, "symmetric": True}])
def test_scaled_weights_lie_on_their_grid_and_every_byte_is_counted(options, tmp_path):
    model = saved(tmp_path / "model", "llama", num_hidden_layers=1)
    options = lab(**options)
    artifact = build(Awq(), options, model, tmp_path / "a")
    total = 0
    for layer, report in zip(
        linears(load_model(artifact.path, "float32", "cpu")),
        sorted(artifact.layers, key=_place),
        strict=True,
    ):
        assert layer.name == report.name
        groups = layer.weight.reshape(-1, options.group_size)
        levels = [len(group.unique()) for group in groups]
        assert max(levels) <= 2**options.num_bits < max(levels) + 2
        steps = groups.sort(dim=1).values.diff(dim=1)  # whole numbers of the group's step
        step = steps.masked_fill(steps < 1e-6, torch.inf).amin(1, keepdim=True)
        assert ((steps / step).round() - steps / step).abs().max() < 1e-2
        total += report.stored_bytes
        grid = (options.num_bits, options.group_size, options.symmetric)
        assert report.stored_bytes == affine.stored_bytes(report.shape, *grid)
    n_weights = sum(r.shape[0] * r.shape[1] for r in artifact.layers)
    assert artifact.bpw == 8 * total / n_weights
    norms = 3 * 64 * 4  # the scales are inside the norms: nothing is stored beside them
    assert artifact.weight_bytes == total + norms


def _place(report) -> int:
    order = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    return order.index(report.name.rpartition(".")[2])


def test_half_precision(tmp_path):
    model = with_salient_channels(tmp_path / "model", "gpt2")
    half = ModelRef(model.id, model.path, model.identity, "bfloat16")
    artifact = build(Awq(), lab(num_bits=8, group_size=16), half, tmp_path / "a")
    assert load_model(artifact.path, "bfloat16", "cpu").dtype == torch.bfloat16
    assert artifact.details["layers"]["worst_relative_loss"] < 1e-4


# -- before any job ---------------------------------------------------------------------------


def test_needs_no_library_and_no_kernel(tmp_path, monkeypatch):
    monkeypatch.setattr("qeval.core.extras.require", lambda *_: pytest.fail("asked for a package"))
    model = saved(tmp_path / "model", "llama")  # float32, which no packed kernel computes in
    Awq().preflight(lab(group_size=16), model)
    with pytest.raises(UsageError, match=r"group_size 64 .* model\.layers\.\{0-1\}\.mlp\.down_proj"):
        Awq().preflight(lab(group_size=64), model)
    with pytest.raises(BuildError, match="group_size 64 does not divide 96 inputs"):
        build(Awq(), lab(group_size=64), model, tmp_path / "a")
    assert lab().execution() == {}
    assert AwqOptions().execution() == {"kernel": "auto"}
    assert Awq().environment(lab()) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "torch"}, "kernel: no kernel runs simulated weights"),
        ({"group_size": 0}, r"group_size\n.*must be a positive number of inputs, or -1"),
        ({"num_bits": 9}, "less than or equal to 8"),
        ({"num_bits": 3, "backend": "gptqmodel"}, "num_bits 3: packed AWQ has 4 bits; others with"),
        ({"num_bits": 3, "backend": "auto-awq"}, "num_bits 3: packed AWQ has 4 bits"),
        ({"group_size": 48, "backend": "gptqmodel"}, "choose one of -1, 16"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        lab(**options) if "backend" not in options else AwqOptions(**options)


def test_labels():
    assert Awq().label(lab()) == "AWQ W4A16g128 (laboratory)"
    assert Awq().label(lab(num_bits=3, group_size=-1, symmetric=True)) == "AWQ W3A16 sym (laboratory)"
    assert lab(group_size=48).group_size == 48
