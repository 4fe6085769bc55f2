"""The driver: every family's linears are found, each with the inputs that the whole model gives it."""

import copy
from functools import partial

import pytest
import torch
from families import FAMILIES, MIXTURES, STARVED, WINDOWS, make_model, one_thread

from qeval.core.errors import BuildError
from qeval.formats.affine import Grid, fake_quantize
from qeval.models.architectures import ARCHITECTURES, decoder_blocks
from qeval.models.experts import expert_of, experts_as_linears
from qeval.models.linears import linears
from qeval.quant.laboratory.driver import quantize_blocks
from qeval.quant.laboratory.solvers.base import Facts, GridRules, Solution
from qeval.quant.laboratory.solvers.gptq import gptq
from qeval.quant.laboratory.solvers.rtn import rtn
from qeval.quant.laboratory.unfinished import Unfinished

_one_thread = pytest.fixture(autouse=True)(one_thread)

FEW = [WINDOWS[0], WINDOWS[1][:40], WINDOWS[2]]  # windows need not be equally long


class Untouched:
    """A solver that leaves the weights, and keeps what it was told."""

    def __init__(self) -> None:
        self.hessians: list[torch.Tensor] = []

    def __call__(self, weight, hessian):
        self.hessians.append(hessian)
        grid = Grid(weight[:, :1], weight[:, :1], 0, 1)
        return Solution(weight, grid, torch.zeros(weight.shape[1]).long(), None, 1, Facts(0.0, 0.0))


def run(model, solve, windows=FEW, **options):
    steps = []
    results = quantize_blocks(
        model,
        windows,
        solve,
        device=torch.device("cpu"),
        kind="int4",
        progress=lambda *step: steps.append(step),
        **options,
    )
    return results, steps


@torch.no_grad()
def true_inputs(model, windows=FEW):
    """The inputs [tokens, in] of every linear in an ordinary forward pass of the whole model."""
    seen, handles = {}, []
    for layer in linears(model):
        add = partial(_dense, seen.setdefault(layer.name, []))
        handles.append(layer.module.register_forward_pre_hook(add))
    for name, module in model.named_modules():
        if name.endswith(".experts"):
            handles.append(module.register_forward_pre_hook(partial(_experts, seen, name)))
    for ids in windows:
        model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts).double() for name, parts in seen.items()}


def _dense(parts, _, args):
    parts.append(args[0].flatten(0, -2))


def _experts(seen, name, module, args):
    """What each expert reads, by its rows of the model's own parameters."""
    hidden, chosen, _ = args
    for i in range(module.num_experts):
        x = hidden[(chosen == i).any(dim=1)]
        gate, up = (x @ module.gate_up_proj[i].T).chunk(2, dim=1)
        for part in ("gate_proj", "up_proj"):
            seen.setdefault(f"{name}.{i}.{part}", []).append(x)
        seen.setdefault(f"{name}.{i}.down_proj", []).append(torch.nn.functional.silu(gate) * up)


def true_moments(model, windows=FEW):
    """Mean x x^T of every linear's inputs; I where it saw none."""
    inputs = true_inputs(model, windows)
    return {n: x.T @ x / len(x) if len(x) else torch.eye(x.shape[1]) for n, x in inputs.items()}


MIXED = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
CASES = [*((kind, {}) for kind in FAMILIES), ("qwen2", MIXED), ("bloom", {"n_layer": 3})]
OLD_FALCON = {"new_decoder_architecture": False, "multi_query": True, "alibi": True}
CASES.append(("falcon", OLD_FALCON))
CASES.append(("qwen2_moe", {"num_hidden_layers": 3, "decoder_sparse_step": 2, "mlp_only_layers": []}))


SEQUENTIALLY = [(*case, True) for case in CASES]
AT_ONCE = [(kind, {}, False) for kind in ("llama", "falcon", "gpt2", "qwen2_moe", "deepseek_v3")]


@pytest.mark.parametrize(
    ("kind", "config", "true_sequential"),
    SEQUENTIALLY + AT_ONCE,
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_inputs_are_those_of_the_whole_model(kind, config, true_sequential):
    model = make_model(kind, **config)
    inputs, expected = true_inputs(model), true_moments(model)
    before = copy.deepcopy(model.state_dict())
    solve = Untouched()
    results, steps = run(model, solve, true_sequential=true_sequential)
    assert sorted(r.report.name for r in results) == sorted(expected)
    for result, hessian in zip(results, solve.hessians, strict=True):
        wanted = expected[result.report.name]
        assert (hessian - wanted).norm() < 1e-5 * wanted.norm(), result.report.name
        assert result.n_tokens == len(inputs[result.report.name])
        if expert_of(result.report.name) is None:
            assert result.n_tokens == sum(map(len, FEW))
    n = len(results)
    assert [step[:2] for step in steps] == [(i + 1, n) for i in range(n)]
    assert steps[0][2] == f"layers, {results[0].report.name} lost 0.00%"
    assert list(model.state_dict()) == list(before)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    ids = torch.tensor([FEW[0]])  # nothing of the recording stays behind
    assert torch.equal(model(ids).logits, make_model(kind, **config)(ids).logits)


def test_every_family_of_the_table_is_tried():
    assert FAMILIES.keys() == ARCHITECTURES.keys()


@pytest.mark.parametrize("true_sequential", [True, False])
def test_true_sequential_measures_what_the_stages_before_hand_on(true_sequential):
    model = make_model("llama")
    whole = copy.deepcopy(model)
    told = {}

    def solve(weight, hessian):
        told[len(told)] = hessian
        return rtn(weight, hessian, GridRules(2))

    names = [r.report.name for r in run(model, solve, true_sequential=true_sequential)[0]]
    name = "model.layers.0.self_attn.o_proj"
    seen = told[names.index(name)]
    exact = true_moments(whole)[name]
    attention = whole.model.layers[0].self_attn
    for part in ("q_proj", "k_proj", "v_proj"):
        module = getattr(attention, part)
        module.weight.data.copy_(rtn(module.weight.data, torch.eye(64), GridRules(2)).weight)
    rounded = true_moments(whole)[name]
    wanted, other = (rounded, exact) if true_sequential else (exact, rounded)
    assert (seen - wanted).norm() < 1e-5 * wanted.norm()
    assert (seen - other).norm() > 1e-2 * other.norm()
    second = "model.layers.1.self_attn.q_proj"  # of the next block: all of this one is rounded, always
    assert torch.equal(told[names.index(second)], told[names.index("model.layers.1.self_attn.k_proj")])
    true = true_moments(model)[second]
    assert (told[names.index(second)] - true).norm() < 1e-5 * true.norm()


def test_reports():
    model = make_model("llama")
    before = dict(copy.deepcopy(model).named_parameters())
    solve = lambda w, h: gptq(w, h, GridRules(3, 16))  # noqa: E731
    results, _ = run(model, solve, [WINDOWS[0][:50]], num_blocks=1)
    assert [r.report.name.removeprefix("model.layers.0.") for r in results] == [
        name for stage in ARCHITECTURES["llama"].stages for name in stage
    ]
    for r in results:
        new, old = model.get_parameter(f"{r.report.name}.weight"), before[f"{r.report.name}.weight"]
        assert r.report.shape == tuple(new.shape)
        assert r.report.kind == "int4"
        assert r.report.mse == pytest.approx((new - old).square().mean().item())
        assert r.report.loss == r.facts.loss > 0
        assert r.report.relative_loss == r.facts.relative_loss > 0
        assert r.report.damping == 0.01
        assert r.report.outlier_share is None
        assert f"50 calibration tokens for {new.shape[1]} inputs" in r.report.note
    for name, parameter in model.named_parameters():
        if "layers.0." not in name:
            assert torch.equal(parameter, before[name])  # num_blocks: the rest is untouched


def test_a_raised_damping_is_in_the_report():
    model = make_model("opt", num_hidden_layers=1)

    def solve(weight, hessian):
        low = torch.linalg.eigvalsh(hessian)[0] + 1e-2 * hessian.diagonal().mean()
        return gptq(weight, hessian - low * torch.eye(len(hessian)), GridRules(4), percdamp=1e-4)

    results, _ = run(model, solve, WINDOWS)
    assert all("damping raised from 0.0001 to 0." in r.report.note for r in results)


def test_dead_inputs_are_in_the_report():
    model = make_model("llama", num_hidden_layers=1)
    norm = model.model.layers[0].input_layernorm
    norm.weight.data[[1, 5]] = 0
    results, _ = run(model, lambda w, h: gptq(w, h, GridRules(4)), WINDOWS)
    dead = ["2 inputs were always 0" in r.report.note for r in results]
    assert dead == [True] * 3 + [False] * 4  # q, k, v read what comes out of that norm


def test_nan_activations_name_the_layer():
    model = make_model("llama")
    model.model.layers[1].self_attn.v_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(BuildError, match=r"model\.layers\.1\.self_attn\.o_proj: its inputs .* NaN"):
        run(model, Untouched())


def test_what_a_solver_refuses_names_the_layer():
    with pytest.raises(
        BuildError, match=r"layers\.0\.mlp\.down_proj: group_size 64 does not divide 96"
    ):
        run(make_model("llama"), lambda w, h: rtn(w, h, GridRules(4, 64)))


def test_an_unknown_architecture_says_what_is_missing():
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    with pytest.raises(
        BuildError, match=r"architecture gpt_neox .*they know bloom, .* needs an entry in"
    ):
        run(GPTNeoXForCausalLM(config), Untouched())


def test_a_block_with_another_linear_than_the_table_says():
    model = make_model("llama")
    model.model.layers[1].mlp.mixer = torch.nn.Linear(64, 4)
    with pytest.raises(
        BuildError, match=r"llama: model\.layers\.1 is not what .* it has mlp\.mixer, too"
    ):
        run(model, Untouched())
    model = make_model("opt")
    del model.model.decoder.layers[0].fc2
    with pytest.raises(BuildError, match=r"opt: model\.decoder\.layers\.0 .* it lacks fc2"):
        run(model, Untouched())


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_experts_that_are_no_linears(kind):
    with pytest.raises(BuildError, match=r"layers\.. is not .* it has mlp\.experts\.down_proj, mlp"):
        decoder_blocks(make_model(kind))  # experts.py has not opened them


def test_a_mixture_without_an_expert_or_with_another_linear():
    model = make_model("mixtral")
    with experts_as_linears(model):
        del model.model.layers[1].mlp.experts._modules["3"].up_proj
        with pytest.raises(BuildError, match=r"layers\.1 is not .* it lacks mlp\.experts\.3\.up_proj"):
            decoder_blocks(model)
    model = make_model("qwen2_moe")
    model.model.layers[1].mlp.mixer = torch.nn.Linear(64, 8)
    with pytest.raises(BuildError, match=r"layers\.1 is not what .* it has mlp\.mixer, too"):
        run(model, Untouched())


@pytest.mark.parametrize("kind", MIXTURES)
def test_an_expert_without_tokens_is_rounded_to_nearest_and_the_others_are_not(kind):
    model, rules = make_model(kind), GridRules(3, 16)
    with experts_as_linears(model):
        before = {x.name: x.weight.clone() for x in linears(model)}
    results, _ = run(model, partial(gptq, rules=rules), WINDOWS)
    with experts_as_linears(model):
        after = {x.name: x.weight.clone() for x in linears(model)}
    n_starved = 0
    for r in results:
        nearest = fake_quantize(before[r.report.name], 3, 16, False)
        starved = (expert_of(r.report.name) or ("", 0))[1] == STARVED
        n_starved += starved
        assert torch.equal(after[r.report.name], nearest) == starved
        assert (r.n_tokens == 0) == starved
        assert (r.report.note == "no calibration token") == starved
        assert (r.report.loss is None) == starved
        assert r.facts.relative_loss == 0 if starved else r.facts.relative_loss > 0
    assert n_starved == 3 * sum(1 for name, _ in model.named_modules() if name.endswith(".experts"))


@pytest.mark.parametrize("kind", MIXTURES)
def test_gptq_of_experts_loses_less_than_rtn(kind):
    losses = {}
    for solver in (gptq, rtn):
        results, _ = run(make_model(kind), partial(solver, rules=GridRules(3, 16)), WINDOWS)
        fed = [r for r in results if expert_of(r.report.name) and r.n_tokens >= 2 * r.report.shape[1]]
        losses[solver] = {r.report.name: r.facts.relative_loss for r in fed}
    both = losses[gptq].keys() & losses[rtn].keys()  # what is routed depends on what is rounded before
    assert len(both) > 5
    assert all(losses[gptq][name] < losses[rtn][name] for name in both)


def test_windows_longer_than_the_model_reads():
    with pytest.raises(BuildError, match="windows of 200 tokens, but the model has 128 positions"):
        run(make_model("opt"), Untouched(), [[1] * 200])


def test_float32_products_stay_float32():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    seen = []

    def solve(weight, hessian):
        seen.append(torch.get_float32_matmul_precision())
        return Untouched()(weight, hessian)

    try:
        run(make_model("opt", num_hidden_layers=1), solve)
        assert set(seen) == {"highest"}
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_a_build_that_died_goes_on_with_the_next_block(kind, tmp_path):
    """Blocks that are done are not solved again, and the result is that of one undisturbed run."""
    whole, died = make_model(kind, num_hidden_layers=3), make_model(kind, num_hidden_layers=3)
    rules = GridRules(3, 16)
    expected, _ = run(whole, lambda w, h: gptq(w, h, rules))
    n_layers = len(expected)
    solved = []

    def solve(weight, hessian):
        if len(solved) == n_layers * 2 // 3 + 2:
            raise KeyboardInterrupt
        solved.append(weight)
        return gptq(weight, hessian, rules)

    def keep(linear, solution):
        return {"scale": solution.grid.scale}

    with pytest.raises(KeyboardInterrupt):
        run(died, solve, keep=keep, unfinished=Unfinished(tmp_path))
    assert [p.name for p in sorted(tmp_path.iterdir())] == [
        "block-00000.safetensors",
        "block-00001.safetensors",
    ]
    solved.clear()
    again = make_model(kind, num_hidden_layers=3)
    results, steps = run(again, solve, keep=keep, unfinished=Unfinished(tmp_path))
    assert len(solved) == n_layers // 3
    assert steps[1] == (n_layers * 2 // 3, n_layers, "layers, found done")
    assert [r.report for r in results] == [r.report for r in expected]
    assert [r.facts for r in results] == [r.facts for r in expected]
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name])
    weight = make_model(kind, num_hidden_layers=3).model.layers[0].self_attn.q_proj.weight.data
    hessian = true_moments(make_model(kind, num_hidden_layers=3))["model.layers.0.self_attn.q_proj"]
    exact = gptq(weight, hessian.float(), rules).grid.scale
    assert torch.allclose(results[0].kept["scale"], exact, rtol=1e-2)


def test_a_block_that_was_not_written_whole_is_done_again(tmp_path, capsys):
    store, rules = Unfinished(tmp_path), GridRules(4)
    expected, _ = run(make_model("llama"), lambda w, h: rtn(w, h, rules), unfinished=store)
    first = tmp_path / "block-00000.safetensors"
    first.write_bytes(first.read_bytes()[:100])
    results, _ = run(make_model("llama"), lambda w, h: rtn(w, h, rules), unfinished=store)
    assert [r.report for r in results] == [r.report for r in expected]
    assert f"{first}: " in capsys.readouterr().out
    assert store.load(0) is not None  # whole now
