"""Scales that move between operations: nothing is computed differently, on every family; and which are
chosen."""

import copy

import pytest
import torch
from families import FAMILIES, WINDOWS, make_model, one_thread

from qeval.core.errors import BuildError
from qeval.formats.affine import Grid, fake_quantize
from qeval.models.architectures import decoder_blocks
from qeval.models.experts import experts_as_linears
from qeval.models.linears import linears
from qeval.quant.laboratory.driver import quantize_blocks
from qeval.quant.laboratory.solvers.base import Facts, GridRules, Solution
from qeval.quant.laboratory.solvers.rtn import rtn
from qeval.quant.laboratory.transforms.awq import RATIOS, AwqScales, awq_scale, inspected, search
from qeval.quant.laboratory.transforms.scaling import fold
from qeval.quant.laboratory.transforms.smoothquant import Smoothing, input_maxima, smoothing_scale
from qeval.quant.laboratory.unfinished import Unfinished

_one_thread = pytest.fixture(autouse=True)(one_thread)

CPU = torch.device("cpu")
ONE_NORM = {"new_decoder_architecture": False, "multi_query": True, "alibi": True}
CASES = {
    **{kind: (kind, {}) for kind in FAMILIES},
    "llama-mha": ("llama", {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True}),
    "qwen2-mha": ("qwen2", {"num_key_value_heads": 4}),
    "olmoe-mha": ("olmoe", {"num_key_value_heads": 4}),
    "olmoe-clipped": ("olmoe", {"num_key_value_heads": 4, "clip_qkv": 0.5}),
    "falcon-one-norm": ("falcon", ONE_NORM),
    "falcon-one-norm-new": ("falcon", {"num_ln_in_parallel_attn": 1}),
    "falcon-in-turn": ("falcon", {**ONE_NORM, "parallel_attn": False}),
    "opt-gelu": ("opt", {"activation_function": "gelu"}),
    "opt-norm-after": ("opt", {"do_layer_norm_before": False}),
    "bloom-norm-residual": ("bloom", {"apply_residual_connection_post_layernorm": True}),
}
FED = {  # what feeds the stages of a block, by its name inside the block
    "llama": ["input_layernorm", "post_attention_layernorm", "mlp.up_proj"],
    "llama-mha": [
        "input_layernorm",
        "self_attn.v_proj",
        "post_attention_layernorm",
        "mlp.up_proj",
    ],
    "starcoder2": ["input_layernorm", "post_attention_layernorm"],
    "opt": ["self_attn_layer_norm", "self_attn.v_proj", "final_layer_norm", "fc1"],
    "opt-gelu": ["self_attn_layer_norm", "self_attn.v_proj", "final_layer_norm"],
    "opt-norm-after": ["self_attn.v_proj", "fc1"],
    "bloom": ["input_layernorm", "post_attention_layernorm"],
    "bloom-norm-residual": [],
    "falcon": ["ln_attn", "ln_mlp"],
    "falcon-one-norm": ["input_layernorm"],
    "falcon-one-norm-new": ["input_layernorm"],
    "falcon-in-turn": ["input_layernorm", "post_attention_layernorm"],
    "gpt2": ["ln_1", "ln_2"],
}
FED |= dict.fromkeys(("mistral", "qwen2", "qwen3", "gemma"), FED["llama"])
FED |= {"qwen2-mha": FED["llama-mha"]}
_EXPERTS = [f"mlp.experts.{i}.up_proj" for i in range(6)]
_LATENT = ["input_layernorm", "self_attn.kv_a_layernorm"]
_DENSE = ["post_attention_layernorm", "mlp.up_proj"]
FED |= {  # of mixtures, the first block's and the second's
    "mixtral": [["input_layernorm", *_EXPERTS]] * 2,
    "olmoe": [["input_layernorm", *_EXPERTS]] * 2,
    "olmoe-mha": [["input_layernorm", "self_attn.v_proj", *_EXPERTS]] * 2,
    "olmoe-clipped": [["input_layernorm", *_EXPERTS]] * 2,
    "qwen2_moe": [FED["llama"], ["input_layernorm", "mlp.shared_expert.up_proj", *_EXPERTS]],
    "qwen3_moe": [FED["llama"], ["input_layernorm", *_EXPERTS]],
    "deepseek_v2": [
        [*_LATENT, *_DENSE],
        [*_LATENT, *_EXPERTS, "mlp.shared_experts.up_proj"],
    ],
}
_QUERIES = ["input_layernorm", "self_attn.q_a_layernorm", "self_attn.kv_a_layernorm"]
FED["deepseek_v3"] = [
    [*_QUERIES, *_DENSE],
    [*_QUERIES, *_EXPERTS, "mlp.shared_experts.up_proj"],
]


def fed(case, index=0):
    found = FED[case]
    return found[index] if found and isinstance(found[0], list) else found


def make(case):
    """Norms and biases are drawn, too: as initialised, most are 1 and 0, and hide what is wrong."""
    kind, config = CASES[case]
    model = make_model(kind, **config)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def untouched(weight, hessian):
    grid = Grid(weight[:, :1], weight[:, :1], 0, 1)
    return Solution(weight, grid, torch.zeros(weight.shape[1]).long(), None, 1, Facts(0.0, 0.0))


def run(model, prepare, solve=untouched, windows=WINDOWS[:3], **options):
    return quantize_blocks(
        model,
        windows,
        solve,
        device=CPU,
        kind="int4",
        progress=lambda *_: None,
        prepare=prepare,
        **options,
    )


@torch.no_grad()
def logits(model):
    return model(torch.tensor(WINDOWS[3:5])).logits


def assert_same(model, before):
    """Within float32's rounding; logits are a few units large."""
    after = logits(model)
    assert (after - before).norm() < 1e-5 * before.norm()


# -- the law: without rounding nothing changes --------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_any_scale_leaves_the_output(case):
    model = make(case)
    before, weights = logits(model), copy.deepcopy(model.state_dict())
    with experts_as_linears(model):
        for index, block in enumerate(decoder_blocks(model)):
            names = {id(m): n for n, m in block.module.named_modules()}
            assert [names[id(feed.source)] for feed in block.feeds] == fed(case, index)
            scaled = [x.name for feed in block.feeds for x in feed.readers]
            every = [x.name for x in block.linears]
            assert sorted([*scaled, *block.unfed]) == sorted(every)
            assert all(block.unfed.values())
            for seed, feed in enumerate(block.feeds):
                generator = torch.Generator().manual_seed(seed)
                fold(feed, torch.rand(feed.readers[0].weight.shape[1], generator=generator) * 4 + 0.1)
    assert_same(model, before)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, weights[k])}
    assert bool(changed) == bool(FED[case])


@pytest.mark.parametrize("case", CASES)
def test_awq_without_rounding_leaves_the_output(case):
    model = make(case)
    before = logits(model)
    prepare = AwqScales(GridRules(3, 16))

    def float_after_all(block, run):
        told = prepare(block, run)
        assert told.keys() == {x.name for x in block.linears}
        return {}

    run(model, float_after_all)
    assert_same(model, before)


@pytest.mark.parametrize("case", [c for c in CASES if any("norm" in f or "ln" in f for f in fed(c))])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_smoothquant_without_rounding_leaves_the_output(case, alpha):
    model = make(case)
    before = logits(model)
    maxima = input_maxima(model, WINDOWS[:3], device=CPU, progress=lambda *_: None)
    assert torch.equal(logits(model), before)  # measuring changes nothing
    run(model, Smoothing(maxima, alpha))
    assert_same(model, before)


def test_smoothquant_refuses_a_model_whose_norms_take_no_scale():
    for case, key in {
        "opt-norm-after": "do_layer_norm_before: False",
        "bloom-norm-residual": "True",
    }.items():
        with pytest.raises(BuildError, match=f"no norm of this model can take a scale.*{key}"):
            input_maxima(make(case), WINDOWS[:1], device=CPU, progress=lambda *_: None)


# -- AWQ's choice --------------------------------------------------------------------------------


def test_awq_scale_is_a_normalized_power():
    magnitude = torch.tensor([0.5, 2.0, 8.0, 0.0])
    assert torch.equal(awq_scale(magnitude, 0), torch.ones(4))
    s = awq_scale(magnitude, 0.5)
    assert s.max() * s.min() == pytest.approx(1)
    assert s[1] / s[0] == pytest.approx(2) and s[2] / s[1] == pytest.approx(2)
    assert s[0] / s[3] == pytest.approx(0.5**0.5 / 1e-4)  # never 0


def test_the_search_takes_the_least_error_and_the_smallest_of_equal_ratios():
    magnitude = torch.tensor([1.0, 4.0])  # s_1 / s_0 = 4^r
    ratio, scale = search(magnitude, lambda s: abs((s[1] / s[0]).item() - 2))
    assert ratio == 0.5 and torch.equal(scale, awq_scale(magnitude, 0.5))
    assert search(magnitude, lambda _: 1.0)[0] == 0
    assert search(magnitude, lambda s: float("nan") if s[0] == 1 else 1.0)[0] == 0.05
    with pytest.raises(BuildError, match="NaN or infinity"):
        search(magnitude, lambda _: float("nan"))


def test_the_inspected_module_is_the_smallest_that_holds_the_readers():
    def of(case):
        block = decoder_blocks(make(case))[0]
        names = {id(m): n for n, m in block.module.named_modules()}
        return [names[id(inspected(block, feed))] for feed in block.feeds]

    assert of("llama") == ["self_attn", "mlp", "mlp.down_proj"]
    assert of("starcoder2") == ["self_attn", "mlp.c_fc"]
    assert of("opt") == ["self_attn", "self_attn.out_proj", "fc1", "fc2"]
    assert of("falcon-one-norm") == [""]  # the block: one norm for attention and MLP
    assert of("falcon") == ["self_attention.query_key_value", "mlp.dense_h_to_4h"]


def chosen(model, rules, windows=WINDOWS[:3]):
    """The ratio of every linear that has one, by its name."""
    ratios = {}

    def spy(block, run):
        told = AwqScales(rules)(block, run)
        ratios.update((n, float(how.note.split("^")[1])) for n, how in told.items() if how.note)
        return {}

    run(model, spy, windows=windows, num_blocks=1)
    return ratios


@pytest.mark.parametrize("case", ["llama-mha", "falcon-one-norm", "gpt2", "gemma"])
def test_each_ratio_is_the_best_by_brute_force(case):
    """The definition, by running the inspected modules of the float block on every token."""
    rules, model = GridRules(3, 16), make(case)
    block = decoder_blocks(model)[0]
    seen: dict[int, list] = {i: [] for i in range(len(block.feeds))}
    inputs: dict[int, list] = {i: [] for i in range(len(block.feeds))}
    handles = []
    for i, feed in enumerate(block.feeds):
        keep = lambda _, args, kwargs, i=i: seen[i].append((args, kwargs))  # noqa: E731
        take = lambda _, args, i=i: inputs[i].append(args[0].flatten(0, -2))  # noqa: E731
        module = inspected(block, feed)
        handles.append(module.register_forward_pre_hook(keep, with_kwargs=True))
        handles.append(feed.readers[0].module.register_forward_pre_hook(take))
    with torch.no_grad():
        for ids in WINDOWS[:3]:
            model(torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    ratios = chosen(copy.deepcopy(model), rules)
    for i, feed in enumerate(block.feeds):
        errors = errors_by_ratio(inspected(block, feed), feed, seen[i], torch.cat(inputs[i]), rules)
        best = ratios[feed.readers[0].name]
        assert errors[best] <= min(errors.values()) * (1 + 1e-5), (case, i, errors)
        assert {ratios[x.name] for x in feed.readers} == {best}
        if best:
            assert errors[best] < errors[0]
    assert any(ratios.values())  # a scale is of use somewhere


@torch.no_grad()
def errors_by_ratio(module, feed, calls, x, rules):
    def outputs():
        made = [module(*args, **kwargs) for args, kwargs in calls]
        return torch.cat([y[0] if isinstance(y, tuple) else y for y in made], dim=-2)

    exact, whole = outputs(), [linear.weight.clone() for linear in feed.readers]
    errors = {}
    for ratio in RATIOS:
        m = x.abs().mean(0) ** ratio
        s = m / (m.max() * m.min()).sqrt()
        for linear, weight in zip(feed.readers, whole, strict=True):
            grid = (rules.num_bits, rules.group_size, rules.symmetric)
            linear.weight.copy_(fake_quantize(weight * s, *grid) / s)
        errors[ratio] = (outputs() - exact).double().square().mean().item()
        for linear, weight in zip(feed.readers, whole, strict=True):
            linear.weight.copy_(weight)
    return errors


@pytest.mark.parametrize(
    ("num_bits", "ratios"), [(4, [0.25, 0.7, 0.35, 0.55]), (3, [0.45, 0.5, 0.6, 0.4])]
)
def test_the_authors_program_takes_the_same_ratios(num_bits, ratios):
    """Goldens: auto_scale_block of mit-han-lab/llm-awq at d6e797a, torch 2.13 on the CPU, on this
    model's block and all windows. Its scales were these to 2.2e-7."""
    model = make_model("llama", num_key_value_heads=4, num_hidden_layers=1, intermediate_size=128)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
            parameter.data[[3, 20]] *= 6
    found = chosen(model, GridRules(num_bits, 16), windows=WINDOWS)
    readers = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
    assert [found[f"model.layers.0.{name}"] for name in readers] == ratios


def test_modules_are_inspected_on_a_bounded_sample(monkeypatch):
    """Two windows of 64 tokens are enough for 65; the mean of |x| and H are of all windows."""
    monkeypatch.setattr("qeval.quant.laboratory.transforms.awq.SAMPLE_TOKENS", 65)
    model = make("llama")
    calls = []
    attention = model.model.layers[0].self_attn
    attention.register_forward_hook(lambda *_: calls.append(1))
    rules = GridRules(4, 16)
    run(model, AwqScales(rules), windows=WINDOWS[:5], num_blocks=1, true_sequential=False)
    in_search = 2 * (1 + len(RATIOS))
    assert len(calls) == 5 + in_search + 5  # H and mean |x|; the search; H of the scaled block


def test_awq_names_the_linear_of_an_inspected_module_that_is_not_finite():
    model = make("llama")
    model.model.layers[0].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(BuildError, match=r"layers\.0\.mlp\.gate_proj: the outputs .* NaN"):
        run(model, AwqScales(GridRules(4, 16)))


# -- SmoothQuant's scales ------------------------------------------------------------------------


def test_smoothing_scale():
    inputs, weights = torch.tensor([16.0, 1.0, 0.0]), torch.tensor([0.25, 4.0, 1.0])
    assert torch.equal(smoothing_scale(inputs, weights, 1.0), torch.tensor([16.0, 1.0, 1.0]))
    assert torch.equal(smoothing_scale(inputs, weights, 0.0), torch.tensor([4.0, 0.25, 1.0]))
    assert torch.equal(smoothing_scale(inputs, weights, 0.5), torch.tensor([8.0, 0.5, 1.0]))


@pytest.mark.parametrize("case", ["llama", "gemma", "gpt2", "falcon-one-norm"])
def test_at_its_ends_alpha_evens_out_the_inputs_or_the_weights(case):
    """alpha 1: every input of the linears behind norms is 1 at most, and is 1; 0: every column."""
    for alpha in (0.0, 1.0):
        model = make(case)
        maxima = input_maxima(model, WINDOWS[:3], device=CPU, progress=lambda *_: None)
        run(model, Smoothing(maxima, alpha))
        after = input_maxima(model, WINDOWS[:3], device=CPU, progress=lambda *_: None)
        feeds = [feed for block in decoder_blocks(model) for feed in block.feeds if feed.is_norm]
        assert len(feeds) == len(maxima) == 2 * len([f for f in FED[case] if "ln_" in f or "norm" in f])
        for feed in feeds:
            columns = torch.cat([x.weight for x in feed.readers]).abs().amax(0)
            even = after[feed.readers[0].name] if alpha else columns
            torch.testing.assert_close(even, torch.ones_like(even), rtol=1e-4, atol=0)


def test_maxima_are_those_of_the_float_model():
    model, seen = make("opt"), {}
    for layer in linears(model):
        largest = lambda _, args, n=layer.name: seen.setdefault(n, []).append(args[0].flatten(0, -2))  # noqa: E731
        layer.module.register_forward_pre_hook(largest)
    for ids in WINDOWS[:3]:
        with torch.no_grad():
            model(torch.tensor([ids]))
    exact = {name: torch.cat(x).abs().amax(0) for name, x in seen.items()}
    maxima = input_maxima(make("opt"), WINDOWS[:3], device=CPU, progress=lambda *_: None)
    assert [n.partition(".layers.")[2] for n in maxima] == [
        f"{i}.{n}" for i in (0, 1) for n in ("self_attn.q_proj", "fc1")
    ]
    for name, found in maxima.items():
        torch.testing.assert_close(found, exact[name])


def test_nan_inputs_name_the_linear():
    model = make("opt")
    model.model.decoder.layers[1].self_attn_layer_norm.weight.data[0] = float("nan")
    with pytest.raises(BuildError, match=r"layers\.1\.self_attn\.q_proj: its inputs .* NaN"):
        input_maxima(model, WINDOWS[:1], device=CPU, progress=lambda *_: None)


# -- builds that die -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["awq", "smoothquant"])
def test_a_build_that_died_goes_on_with_the_scales_that_it_had_folded(name, tmp_path):
    rules = GridRules(4, 16)

    def prepare(model):
        if name == "awq":
            return AwqScales(rules)
        return Smoothing(input_maxima(model, WINDOWS[:3], device=CPU, progress=lambda *_: None), 0.5)

    def solve(weight, hessian):
        return rtn(weight, hessian, rules)

    whole, died, again = (make("starcoder2") for _ in range(3))
    expected = run(whole, prepare(whole), solve)
    first = prepare(died)
    with pytest.raises(KeyboardInterrupt):
        run(
            died,
            lambda b, r: first(b, r) if b.feeds[0].readers[0].name.count(".0.") else stop(),
            solve,
            unfinished=Unfinished(tmp_path),
        )
    results = run(again, prepare(again), solve, unfinished=Unfinished(tmp_path))
    assert results == expected
    assert any(r.lacking for r in results) == (name == "awq")
    for key, tensor in again.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[key]), key


def stop():
    raise KeyboardInterrupt
