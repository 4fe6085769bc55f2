"""Packing into GPTQ's format: against its reader (unpack.py), GPTQModel's own packing, the simulated
result of the same solve, and the kernels that run it. The builds are those of quantized.py."""

import json

import pytest
import torch
from families import WINDOWS, build, drawn, one_thread, saved
from pydantic import ValidationError
from quantized import LABORATORY

from qeval.core.artifact import ModelRef
from qeval.core.errors import BuildError, MissingExtraError, UsageError
from qeval.formats.affine import fit_grid
from qeval.formats.describe import describe_packed
from qeval.models.loading import load_model
from qeval.quant.awq import Awq, AwqOptions
from qeval.quant.base import BuildContext
from qeval.quant.gptq import Gptq, GptqOptions
from qeval.quant.laboratory.gptq_format import pack_gptq, pack_ints
from qeval.quant.laboratory.solvers.base import consecutive, snap_to
from qeval.quant.libraries.unpack import float_twin, gptq_weight, unpack_ints
from qeval.quant.quantease import QuantEase, QuantEaseOptions
from qeval.quant.rtn import Rtn, RtnOptions
from qeval.quant.smoothquant import SmoothQuant, SmoothQuantOptions

_one_thread = pytest.fixture(autouse=True)(one_thread)
BITS = (2, 3, 4, 8)


@pytest.mark.parametrize("num_bits", BITS)
@pytest.mark.parametrize(("n", "m"), [(32, 1), (96, 7), (160, 33)])
def test_unpacking_gives_back_what_was_packed(num_bits, n, m):
    values = torch.randint(0, 2**num_bits, (n, m), dtype=torch.uint8)
    words = pack_ints(values, num_bits)
    assert words.dtype == torch.int32 and words.shape == (n * num_bits // 32, m)
    assert torch.equal(unpack_ints(words, num_bits), values.long())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("num_bits", BITS)
@pytest.mark.parametrize("shuffled", [False, True])
def test_the_stored_integers_stand_for_the_weights_exactly(num_bits, symmetric, shuffled):
    """Five groups; rows without negative weights (zero point 0), without positive ones, of zeros."""
    torch.manual_seed(num_bits)
    weight = torch.randn(64, 160)
    weight[0], weight[1], weight[2] = weight[0].abs(), -weight[1].abs(), 0
    grid = fit_grid(weight, num_bits, 32, symmetric)
    group_of = consecutive(160, 32, weight.device)
    if shuffled:
        group_of = group_of[torch.randperm(160)]
    weight = snap_to(weight, grid, group_of)
    parts = pack_gptq(weight, grid, group_of)
    assert torch.equal(gptq_weight(parts, num_bits, int(symmetric)), weight)
    assert {name: (part.dtype, tuple(part.shape)) for name, part in parts.items()} == {
        "qweight": (torch.int32, (160 * num_bits // 32, 64)),
        "qzeros": (torch.int32, (5, 64 * num_bits // 32)),
        "scales": (torch.float16, (5, 64)),
        "g_idx": (torch.int32, (160,)),
    }
    zeros = unpack_ints(parts["qzeros"].T.contiguous(), num_bits)
    if symmetric:
        assert (zeros == 2 ** (num_bits - 1) - 1).all()  # v1: less one
    else:
        assert (zeros[0] == 0).all() and (zeros[1] == 2**num_bits - 1).all()


@pytest.mark.real
def test_gptqmodel_packs_the_same_levels_to_the_same_words(quantized):
    quantized.require("gptq")
    quantized.step("float")
    assert quantized.step("build gptq") == 0
    found = json.loads((quantized.folder / "pack.json").read_text())
    assert found == {f"{bits} {kind}": [] for bits in BITS for kind in ("symmetric", "asymmetric")}


# -- whole models -----------------------------------------------------------------------------

LAB = {"backend": "laboratory"}
SOLVES = {
    "gptq": (Gptq, GptqOptions, {**LAB, "num_bits": 4, "group_size": 32}),
    "act-order": (
        Gptq,
        GptqOptions,
        {**LAB, "num_bits": 2, "group_size": 16, "symmetric": False, "act_order": True},
    ),
    "static groups": (
        QuantEase,
        QuantEaseOptions,
        {"num_bits": 3, "group_size": 32, "init": "gptq", "sweeps": 2},
    ),
    "rtn": (Rtn, RtnOptions, {"num_bits": 8, "symmetric": True}),
    "awq": (Awq, AwqOptions, {**LAB, "num_bits": 4, "group_size": 32}),
    "smoothquant": (SmoothQuant, SmoothQuantOptions, {"solver": "gptq"}),
}


WHOLE = [(solve, kind) for solve in SOLVES for kind in ("llama", "starcoder2")]


@pytest.mark.parametrize(("solve", "kind"), [*WHOLE, ("gptq", "gpt2")])
def test_packed_weights_are_the_simulated_ones(solve, kind, tmp_path):
    """In float32, bit by bit: the same levels and scales. And every byte of the file is counted."""
    method, options, chosen = SOLVES[solve]
    model = saved(tmp_path / "model", kind)
    simulated = build(method(), options(**chosen), model, tmp_path / "simulated")
    packed = build(method(), options(**chosen, format="gptq"), model, tmp_path / "packed")
    wanted, found = load_model(simulated.path, "float32", "cpu"), float_twin(packed.path, torch.float32)
    for (name, a), b in zip(wanted.named_parameters(), found.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert packed.simulated is False and simulated.simulated is True
    assert packed.layers[0].kind == simulated.layers[0].kind
    told = {x.name: (x.shape, x.mse, x.loss, x.note) for x in simulated.layers}
    assert {x.name: (x.shape, x.mse, x.loss, x.note) for x in packed.layers} == told
    file = packed.path / "model.safetensors"
    header = int.from_bytes(file.read_bytes()[:8], "little")
    assert packed.weight_bytes + packed.embedding_bytes == file.stat().st_size - 8 - header
    described = describe_packed(packed.path)
    assert (described.bpw, described.bpw_file) == (packed.bpw, packed.bpw_file)
    bits, group = options(**chosen).num_bits, chosen.get("group_size", -1)
    for layer in packed.layers:
        out, into = layer.shape
        groups = 1 if group == -1 else into // group
        assert layer.stored_bytes == out * into * bits / 8 + groups * out * (2 + bits / 8) + 4 * into


def test_a_build_that_died_goes_on_with_what_was_packed(tmp_path, monkeypatch):
    model = saved(tmp_path / "model", "llama")
    options = QuantEaseOptions(format="gptq", num_bits=3, sweeps=1)

    def attempt(out):
        out.mkdir()
        draw = lambda _: drawn(WINDOWS[:2])  # noqa: E731
        told = lambda *_: None  # noqa: E731
        context = BuildContext(model, out, None, draw, told, out, "cpu", unfinished=tmp_path / "kept")
        return QuantEase().build(options, context)

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("qeval.quant.laboratory.gptq_format.save_gptq", fail)
    with pytest.raises(OSError, match="disk full"):
        attempt(tmp_path / "died")
    monkeypatch.undo()
    monkeypatch.setattr("qeval.quant.laboratory.solvers.quantease.quantease", fail)
    gone_on = attempt(tmp_path / "gone-on")
    monkeypatch.undo()
    (tmp_path / "kept").rename(tmp_path / "moved")
    afresh = attempt(tmp_path / "afresh")
    read = lambda artifact: (artifact.path / "model.safetensors").read_bytes()  # noqa: E731
    assert read(gone_on) == read(afresh)
    assert gone_on.layers == afresh.layers


def test_the_configuration_says_what_loaders_must_know(tmp_path):
    model = saved(tmp_path / "model", "llama", num_hidden_layers=1)
    options = GptqOptions(**LAB, format="gptq", num_bits=3, group_size=32, act_order=True)
    packed = build(Gptq(), options, model, tmp_path / "v1")
    config = json.loads((packed.path / "config.json").read_text())["quantization_config"]
    meta = config.pop("meta")
    assert config == {
        "quant_method": "gptq",
        "bits": 3,
        "group_size": 32,
        "desc_act": True,
        "sym": True,
        "checkpoint_format": "gptq",
        "lm_head": False,
        "pack_dtype": "int32",
    }
    assert meta["quantizer"][0].startswith("qeval:")
    assert packed.format.label == "GPTQ W3A16g32 act-order"
    assert packed.calibration["n_tokens"] == sum(map(len, WINDOWS))
    options = QuantEaseOptions(format="gptq", num_bits=2, sweeps=1)
    packed = build(QuantEase(), options, model, tmp_path / "v2")
    config = json.loads((packed.path / "config.json").read_text())["quantization_config"]
    assert (config["checkpoint_format"], config["sym"], config["desc_act"]) == ("gptq_v2", False, False)


# -- kernels ----------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.parametrize("name", LABORATORY)
def test_the_kernels_logits_are_those_of_the_simulated_weights(quantized, name):
    """Both in bfloat16, and to that accuracy; the packed weights themselves in float32, too."""
    simulated = quantized.logits(f"{name}-simulated")
    floats = quantized.distance(quantized.twin(name), simulated)  # what bfloat16 costs without a kernel
    assert quantized.distance(quantized.twin(name), quantized.logits(name)) < 2 * floats < 0.04
    assert quantized.distance(simulated, quantized.logits(name)) < 2 * floats
    kernel = "aten" if name.endswith("4") else "torch"
    assert quantized.run(name)["facts"]["kernel"] == kernel
    assert "kernel" not in quantized.run(f"{name}-simulated")["facts"]


@pytest.mark.real
@pytest.mark.parametrize("name", LABORATORY)
def test_transformers_without_qeval_loads_the_folder(quantized, name):
    found, logits = quantized.plain(name)
    assert found["missing_keys"] == found["unexpected_keys"] == []
    assert found["kernels"] == list(quantized.run(name)["facts"]["kernels"])
    print(name, quantized.distance(quantized.logits(name), logits))
    assert quantized.distance(quantized.logits(name), logits) <= (0 if name.endswith("4") else 0.025)


# -- what it cannot hold ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "chosen", "message"),
    [
        (QuantEaseOptions, {"num_bits": 5}, "num_bits: format: gptq holds 2, 3, 4, 8, not 5"),
        (QuantEaseOptions, {"group_size": 48}, "group_size: format: gptq holds -1, 16, 32, .*, not 48"),
        (QuantEaseOptions, {"outliers": 0.01}, "outliers: format: gptq holds none"),
        (QuantEaseOptions, {"num_blocks": 1}, "num_blocks: format: gptq has all blocks quantized"),
        (RtnOptions, {"num_bits": 6}, "num_bits: format: gptq holds"),
        (GptqOptions, {}, "format: backend gptqmodel always packs"),
        (GptqOptions, {"backend": "auto-gptq"}, "format: backend auto-gptq always packs"),
        (AwqOptions, {}, "format: backend gptqmodel always packs; leave it out"),
        (AwqOptions, {**LAB, "num_bits": 5}, "num_bits: format: gptq holds 2, 3, 4, 8, not 5"),
        (SmoothQuantOptions, {"num_bits": 6}, "num_bits: format: gptq holds"),
    ],
)
def test_options_that_the_format_cannot_hold(options, chosen, message):
    plain = options(**chosen)
    assert options.model_validate(plain.model_dump(mode="json")) == plain  # as a worker gets them
    with pytest.raises(ValidationError, match=message):
        options(**chosen, format="gptq")


@pytest.mark.parametrize("options", [QuantEaseOptions, RtnOptions, SmoothQuantOptions])
def test_a_kernel_is_for_packed_weights(options):
    with pytest.raises(ValidationError, match="kernel: no kernel runs simulated weights: leave it out"):
        options(kernel="torch")
    assert options().execution() == {}
    assert options(format="gptq", kernel="torch").execution() == {"kernel": "torch"}


CASES = [
    (Gptq(), GptqOptions(**LAB, format="gptq", group_size=64), "gptq"),
    (QuantEase(), QuantEaseOptions(format="gptq", group_size=64), "quantease"),
    (Rtn(), RtnOptions(format="gptq", group_size=64), "rtn"),
    (Awq(), AwqOptions(**LAB, format="gptq", group_size=64), "awq"),
    (SmoothQuant(), SmoothQuantOptions(format="gptq", group_size=64), "smoothquant"),
]


@pytest.mark.parametrize(("method", "options", "name"), CASES)
def test_what_a_model_lacks_is_said_before_any_job(method, options, name, model_of, monkeypatch):
    shapes = {f"model.layers.{i}.mlp.up_proj": (64, 64) for i in range(2)}
    good = model_of(shapes)
    monkeypatch.setattr("qeval.core.extras.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'qeval\[gptqmodel\]'"):
        method.preflight(options, good)
    monkeypatch.setattr("qeval.core.extras.find_spec", lambda _: True)
    method.preflight(options, good)
    with pytest.raises(UsageError, match=f"^{name}, format: gptq: .* not float32 .*: set dtype"):
        method.preflight(options, ModelRef("m", good.path, "sha256:0", "float32"))
    good.path.rename(good.path.with_name("before"))
    bad = model_of({**shapes, "model.layers.1.mlp.up_proj": (80, 64)})
    with pytest.raises(
        UsageError,
        match=f"^{name}, format: gptq: group_size 64 needs inputs .* of 64, outputs of 32; 1 linear is "
        r"not: model\.layers\.1\.mlp\.up_proj \[80, 64\]: leave format out$",
    ):
        method.preflight(options, bad)


def test_a_mixture_of_experts_is_refused(model_of, monkeypatch):
    monkeypatch.setattr("qeval.core.extras.find_spec", lambda _: True)
    model = model_of({"model.layers.0.mlp.experts.0.up_proj": (64, 64)})
    Rtn().preflight(RtnOptions(), model)
    with pytest.raises(UsageError, match=r"rtn, format: gptq: m is a mixture .*: leave format out"):
        Rtn().preflight(RtnOptions(format="gptq"), model)


def test_a_linear_outside_the_blocks_is_refused(tmp_path):
    model = saved(tmp_path / "model", "opt", word_embed_proj_dim=32)
    build(Rtn(), RtnOptions(group_size=32), model, tmp_path / "simulated")
    with pytest.raises(BuildError, match=r"decoder blocks only, and model\.decoder\.project_out is in"):
        build(Rtn(), RtnOptions(group_size=32, format="gptq"), model, tmp_path / "packed")


def test_labels():
    assert Gptq().label(GptqOptions(**LAB, format="gptq")) == "GPTQ W4A16g128 (laboratory) packed"
    assert QuantEase().label(QuantEaseOptions(format="gptq")) == "QuantEase W4A16 packed"
    assert Rtn().label(RtnOptions(format="gptq", symmetric=True)) == "RTN W4A16 sym packed"
    assert Awq().label(AwqOptions(**LAB, format="gptq")) == "AWQ W4A16g128 (laboratory) packed"
    assert SmoothQuant().label(SmoothQuantOptions(format="gptq")) == "SmoothQuant W8A16 packed"
