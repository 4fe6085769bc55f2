"""The driver: every family's linears are found, each with the inputs that the whole model gives it."""

import copy

import pytest
import torch

from qeval.errors import BuildError
from qeval.quant.affine import Grid
from qeval.quant.architectures import ARCHITECTURES
from qeval.quant.blocks import quantize_blocks
from qeval.quant.linears import linears
from qeval.quant.solvers.base import Facts, GridRules, Solution
from qeval.quant.solvers.gptq import gptq
from qeval.quant.solvers.rtn import rtn
from qeval.quant.unfinished import Unfinished

from .families import FAMILIES, WINDOWS, make_model, one_thread

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
def true_moments(model, windows=FEW):
    """Mean x x^T of every linear's inputs in an ordinary forward pass of the whole model."""
    sums, handles = {}, []
    n_tokens = sum(map(len, windows))
    for layer in linears(model):

        def add(_, args, name=layer.name):
            x = args[0].flatten(0, -2).double()
            sums[name] = sums.get(name, 0) + x.T @ x / n_tokens

        handles.append(layer.module.register_forward_pre_hook(add))
    for ids in windows:
        model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return sums


MIXED = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
CASES = [*((kind, {}) for kind in FAMILIES), ("qwen2", MIXED), ("bloom", {"n_layer": 3})]
OLD_FALCON = {"new_decoder_architecture": False, "multi_query": True, "alibi": True}
CASES.append(("falcon", OLD_FALCON))


SEQUENTIALLY = [(*case, True) for case in CASES]
AT_ONCE = [("llama", {}, False), ("falcon", {}, False), ("gpt2", {}, False)]


@pytest.mark.parametrize(
    ("kind", "config", "true_sequential"),
    SEQUENTIALLY + AT_ONCE,
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_inputs_are_those_of_the_whole_model(kind, config, true_sequential):
    model = make_model(kind, **config)
    expected, before = true_moments(model), copy.deepcopy(model.state_dict())
    solve = Untouched()
    results, steps = run(model, solve, true_sequential=true_sequential)
    assert {r.report.name for r in results} == {x.name for x in linears(model)}
    for result, hessian in zip(results, solve.hessians, strict=True):
        wanted = expected[result.report.name]
        assert (hessian - wanted).norm() < 1e-5 * wanted.norm(), result.report.name
        assert result.n_tokens == sum(map(len, FEW))
    n = len(results)
    assert [step[:2] for step in steps] == [(i + 1, n) for i in range(n)]
    assert steps[0][2] == f"layers, {results[0].report.name} lost 0.00%"
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
    model.model.layers[1].mlp.router = torch.nn.Linear(64, 4)
    with pytest.raises(
        BuildError, match=r"llama: model\.layers\.1 is not what .* it has mlp\.router, too"
    ):
        run(model, Untouched())
    model = make_model("opt")
    del model.model.decoder.layers[0].fc2
    with pytest.raises(BuildError, match=r"opt: model\.decoder\.layers\.0 .* it lacks fc2"):
        run(model, Untouched())


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


def test_a_build_that_died_goes_on_with_the_next_block(tmp_path):
    """Blocks that are done are not solved again, and the result is that of one undisturbed run."""
    whole, died = make_model("llama", num_hidden_layers=3), make_model("llama", num_hidden_layers=3)
    rules, n_layers = GridRules(3, 16), len(list(linears(whole)))
    expected, _ = run(whole, lambda w, h: gptq(w, h, rules))
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
    again = make_model("llama", num_hidden_layers=3)
    results, steps = run(again, solve, keep=keep, unfinished=Unfinished(tmp_path))
    assert len(solved) == n_layers // 3
    assert steps[1] == (n_layers * 2 // 3, n_layers, "layers, found done")
    assert [r.report for r in results] == [r.report for r in expected]
    assert [r.facts for r in results] == [r.facts for r in expected]
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name])
    weight = make_model("llama", num_hidden_layers=3).model.layers[0].self_attn.q_proj.weight.data
    hessian = true_moments(make_model("llama", num_hidden_layers=3))["model.layers.0.self_attn.q_proj"]
    exact = gptq(weight, hessian.float(), rules).grid.scale
    assert torch.allclose(results[0].kept["scale"], exact, rtol=1e-2)
