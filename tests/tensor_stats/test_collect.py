"""What is measured in a model: the right tensors, each once, and the ones that will hurt first."""

import json
import math
from dataclasses import asdict

import pytest
import torch
from families import FAMILIES, MIXTURES, WINDOWS, make_model, one_thread
from torch import nn
from transformers import DynamicCache

from qeval.core.errors import BuildError
from qeval.core.record import finite
from qeval.engines.base import Internals
from qeval.engines.low_bits import LowBitCache, round_activations
from qeval.formats.affine import fake_quantize
from qeval.models.architectures import ARCHITECTURES, blocks_path
from qeval.models.experts import experts_as_linears
from qeval.models.linears import linears
from qeval.tensor_stats import collect as module
from qeval.tensor_stats.collect import Bits, collect, read_weight
from qeval.tensor_stats.moments import Moments, moments
from qeval.tensor_stats.rows import worst

_one_thread = pytest.fixture(autouse=True)(one_thread)

BITS = Bits()
FEW = [WINDOWS[0], WINDOWS[1][:40]]  # windows need not be equally long


def internals(model):
    return Internals(model, lambda: DynamicCache(config=model.config))


def run(model, windows=FEW, bits=BITS):
    ticks = []
    rows, notes = collect(internals(model), windows, bits, lambda *step: ticks.append(step))
    with experts_as_linears(model):
        n_linears = len(list(linears(model)))
    assert {unit: (done, total) for done, total, unit in ticks} == {
        "windows": (len(windows), len(windows)),
        "weights": (n_linears, n_linears),
    }
    return rows, notes


def of(rows, kind):
    return {(r.layer, r.name): r for r in rows if r.kind == kind}


def same(row, values):
    """The row's statistics are those of the values, [n, channels]."""
    found = moments(values)
    assert row.count == values.numel()
    assert row.absmax == found.absmax
    assert row.std == pytest.approx(found.std, rel=1e-6)
    assert row.kurtosis == pytest.approx(found.kurtosis, rel=1e-6)
    loudest = values.abs().amax(0)
    assert row.channels == len(loudest)
    assert loudest[row.channel] == loudest.max()  # falcon caches a head once for each of its queries
    assert row.outlier == pytest.approx(float(loudest.max() / loudest.quantile(0.5)), rel=1e-6)
    assert row.top_channels[0] == (row.channel, pytest.approx(row.absmax))


@pytest.mark.parametrize("kind", FAMILIES)
def test_keys_and_values_are_those_of_the_cache(kind):
    model = make_model(kind)
    rows, _ = run(model)
    caches = []
    for window in FEW:
        cache = DynamicCache()  # without the config: a sliding layer keeps all its tokens, too
        with torch.no_grad():
            model(input_ids=torch.tensor([window]), past_key_values=cache, use_cache=True)
        caches.append(cache)
    for name in ("key", "value"):
        found = of(rows, name)
        assert len(found) == 2
        for layer in (0, 1):
            stored = [getattr(c.layers[layer], f"{name}s")[0] for c in caches]  # [heads, tokens, dim]
            same(found[layer, ""], torch.cat([x.transpose(0, 1).flatten(1) for x in stored]))


@pytest.mark.parametrize("kind", FAMILIES)
def test_weights_and_inputs_are_the_models_own(kind):
    model = make_model(kind)
    read: dict[str, list[torch.Tensor]] = {}

    def keep(name):
        def see(_, args):
            if args[0].numel():  # not an expert without tokens
                read.setdefault(name, []).append(args[0].flatten(0, -2))

        return see

    with experts_as_linears(model), torch.no_grad():
        own = list(linears(model))
        hooks = [x.module.register_forward_pre_hook(keep(x.name)) for x in own]
        for window in FEW:
            model(input_ids=torch.tensor([window]))
        for hook in hooks:
            hook.remove()
    rows, notes = run(model)
    assert notes == ()
    weights, inputs = of(rows, "weight").values(), of(rows, "input").values()
    assert [r.modules for r in weights] == [(x.name,) for x in own]
    for row, linear in zip(weights, own, strict=True):
        same(row, linear.weight)
    assert sorted(m for r in inputs for m in r.modules) == sorted(read)
    stages = {frozenset(stage) for stage in ARCHITECTURES[kind].stages}
    for row in inputs:
        prefix = f"{ARCHITECTURES[kind].blocks}.{row.layer}."
        if kind not in MIXTURES:
            assert frozenset(m.removeprefix(prefix) for m in row.modules) in stages
        for reader in row.modules:
            same(row, torch.cat(read[reader]))
    assert {r.layer for r in rows} == {0, 1}
    assert all(not m._forward_pre_hooks for m in model.modules())


def test_the_table_and_the_rule_agree_on_where_the_blocks_are(monkeypatch):
    for kind in FAMILIES:
        model = make_model(kind)
        listed = blocks_path(model)
        assert listed == ARCHITECTURES[kind].blocks
        with monkeypatch.context() as patch:
            patch.delitem(ARCHITECTURES, kind)
            assert blocks_path(model) == listed


def test_a_planted_outlier_channel_comes_first():
    model = make_model("llama")
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[37] = 50.0
    rows, _ = run(model)
    first = worst([r for r in rows if r.kind == "input"], "outlier")[0]
    assert (first.layer, first.name) == (1, "self_attn.q_proj,k_proj,v_proj")
    assert first.channel == 37 and first.top_channels[0][0] == 37
    assert first.outlier > 20
    assert worst([r for r in rows if r.kind == "input"], "sqnr")[0] == first


def test_a_planted_heavy_tail_comes_first():
    model = make_model("llama")
    weight = model.model.layers[0].mlp.up_proj.weight
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        weight.copy_(torch.where(torch.rand(weight.shape, generator=g) < 0.01, 15 * weight, weight))
    rows, _ = run(model)
    weights = [r for r in rows if r.kind == "weight"]
    for column in ("kurtosis", "sqnr", "absmax"):
        first = worst(weights, column)[0]
        assert (first.layer, first.name) == (0, "mlp.up_proj"), column


def test_more_bits_and_smaller_groups_are_less_noise_by_about_six_db_a_bit():
    model = make_model("llama")
    at = {
        bits: {(r.kind, r.layer, r.name): r.sqnr_db for r in run(model, bits=bits)[0]}
        for bits in (Bits(), Bits(weights=5, activations=7, kv_cache=5), Bits(group_size=16))
    }
    base, other, grouped = at.values()
    for key, db in base.items():
        assert other[key] - db == pytest.approx(-6 if key[0] == "input" else 6, abs=1.0)
        if key[0] == "weight":
            assert grouped[key] > db + 1
            own = {x.name: x.weight for x in linears(model)}[f"model.layers.{key[1]}.{key[2]}"]
            error = own - fake_quantize(own, 4, -1, False)
            share = (error.square().sum(0) / own.square().sum(0)).mean().item()
            assert db == pytest.approx(-10 * math.log10(share), abs=1e-3)
    with pytest.raises(BuildError, match=r"group_size 48 does not divide in_features 64 of .*q_proj"):
        run(model, bits=Bits(group_size=48))


def test_a_cache_and_hooks_that_round_are_listened_to_before_they_do():
    model = make_model("llama")
    plain = run(model)[0]

    class Coarse(DynamicCache):
        def update(self, keys, values, layer_idx, *args, **kwargs):
            return super().update(keys.round(), values.round(), layer_idx, *args, **kwargs)

    for linear in linears(model):
        linear.module.register_forward_pre_hook(lambda _, args: (args[0].round(),))
    inside = Internals(model, lambda: Coarse(config=model.config))
    rounding = collect(inside, FEW, Bits(), lambda *_: None)[0]
    assert [(r.kind, r.modules) for r in rounding] == [(r.kind, r.modules) for r in plain]
    first = of(plain, "input")[0, "self_attn.q_proj,k_proj,v_proj"]
    assert of(rounding, "input")[0, "self_attn.q_proj,k_proj,v_proj"] == first
    later = of(rounding, "value")[1, ""]
    assert later.absmax != round(later.absmax) and later != of(plain, "value")[1, ""]


def test_rows_that_round_activations_and_cache_are_left_as_they_were():
    """Of a mixture, whose experts such a row has opened."""
    model, tokens = make_model("mixtral"), torch.tensor([FEW[0]])
    with torch.no_grad():
        plain = model(input_ids=tokens).logits
        round_activations(model, 3, symmetric=False)
        before = model(input_ids=tokens).logits
        cache = LowBitCache.on(model, 2, 16)
        rows, notes = collect(Internals(model, lambda: cache.new(model)), FEW, Bits(), lambda *_: None)
        after = model(input_ids=tokens).logits
    assert notes == () and any("experts" in row.name for row in rows if row.kind == "input")
    assert not torch.equal(plain, before) and torch.equal(before, after)


def test_activations_that_are_not_finite_are_counted_and_leave_no_nan_in_json():
    model = make_model("llama")
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[5] = math.inf
        model.model.layers[1].self_attn.o_proj.weight[0, 0] = math.nan
    rows, _ = run(model)
    broken = of(rows, "input")[1, "self_attn.q_proj,k_proj,v_proj"]
    tokens = sum(map(len, FEW))
    assert broken.nonfinite == tokens and broken.count == 63 * tokens
    assert broken.std == pytest.approx(1, abs=0.2) and broken.top_channels[-1][1] > 0
    assert of(rows, "weight")[1, "self_attn.o_proj"].nonfinite == 1
    dead = of(rows, "key")[1, ""]
    assert (dead.count, dead.absmax, dead.kurtosis, dead.sqnr_db) == (0, None, None, None)
    assert dead.nonfinite == 32 * tokens
    json.dumps([asdict(row) for row in rows], allow_nan=False)
    assert finite([asdict(row) for row in rows])


def test_memory_does_not_grow_with_the_windows(monkeypatch):
    """Streams hold numbers and one vector of channels, nothing of a window."""
    kept = []
    original = module._Stream.add
    monkeypatch.setattr(module._Stream, "add", lambda s, *a: (original(s, *a), kept.append(s))[0])
    run(make_model("llama"), WINDOWS)
    for stream in kept:
        assert isinstance(stream.moments, Moments)
        assert stream.channels.absmax.numel() <= 96
        assert stream.noise._powers.shape == (2, stream.channels.absmax.numel())


class Packed(nn.Module):
    """A kernel that keeps its weight in a layout of its own, behind an answer."""

    def __init__(self, weight, bias=None, limit=None):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("qweight", (weight * 16).round().to(torch.int8).T.contiguous())
        self.bias = None if bias is None else nn.Parameter(bias)
        self.limit = limit

    def forward(self, x):
        x = x if self.limit is None else x.clamp(-self.limit, self.limit)  # static scales saturate
        y = x @ (self.qweight.to(x.dtype) / 16)
        return y if self.bias is None else y + self.bias


def test_a_packed_weight_is_read_through_its_kernel():
    weight = torch.randint(-100, 100, (48, 600), generator=torch.Generator().manual_seed(0)) / 16
    like = torch.zeros(0)
    for bias in (None, 100 * torch.randn(48)):
        layer = Packed(weight, bias)
        assert torch.equal(read_weight(layer, like), weight)
        assert (layer.bias is None) == (bias is None)  # put back
    assert read_weight(Packed(weight), None) is None  # no window came through it
    assert read_weight(Packed(weight, limit=1.5), like) is None


def test_a_model_with_packed_layers_has_all_rows_and_says_what_it_cannot_read():
    model = make_model("llama")
    whole = run(model)[0]
    block = model.model.layers[0]
    original = block.mlp.up_proj.weight.data
    block.mlp.up_proj = Packed((original * 16).round() / 16)
    block.mlp.down_proj = Packed(block.mlp.down_proj.weight.data, limit=0.01)
    rows, notes = collect(internals(model), FEW, Bits(), lambda *_: None)
    assert len(rows) == len(whole) - 1
    same(of(rows, "weight")[0, "mlp.up_proj"], (original * 16).round() / 16)
    assert (0, "mlp.down_proj") in of(rows, "input")
    assert notes == ("1 packed weights not read (first model.layers.0.mlp.down_proj, Packed)",)


def test_weights_outside_linears_are_said():
    model = make_model("llama")
    model.model.layers[0].experts = nn.Module()
    model.model.layers[0].experts.gate_up = nn.Parameter(torch.zeros(8, 64, 192))
    _, notes = run(model)
    assert len(notes) == 1 and notes[0].endswith("their statistics are not shown")
    assert notes[0].startswith("62% of the weights are in no linear layer")
