"""The experts of a mixture as linear layers: the same model, with something to hook and to round."""

from types import SimpleNamespace

import pytest
import torch
from families import MIXTURES, STARVED, WINDOWS, make_model, one_thread

from qeval.models.experts import ExpertLinear, expert_of, experts_as_linears, is_open
from qeval.models.linears import linears

_one_thread = pytest.fixture(autouse=True)(one_thread)


def layout(name):
    """A module of 5 experts, 24 -> 16 -> 24, in one of the layouts that transformers has."""
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts
    from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts
    from transformers.models.openai_privacy_filter.modeling_openai_privacy_filter import (
        OpenAIPrivacyFilterExperts,
    )

    config = SimpleNamespace(
        num_local_experts=5,
        n_routed_experts=5,
        hidden_size=24,
        intermediate_size=16,
        moe_intermediate_size=16,
        moe_latent_size=None,
        hidden_act="silu",
        mlp_hidden_act="relu2",
        _experts_implementation="grouped_mm",
    )
    module = {
        "halves": MixtralExperts,
        "interleaved, transposed, biases": GptOssExperts,
        "transposed halves, biases": OpenAIPrivacyFilterExperts,
        "no gate": NemotronHExperts,
    }[name](config)
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    return module


LAYOUTS = (
    "halves",
    "interleaved, transposed, biases",
    "transposed halves, biases",
    "no gate",
)


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LAYOUTS)
@torch.no_grad()
def test_the_same_outputs_in_every_layout(name, dtype, implementation):
    module = layout(name).to(dtype)
    module.config._experts_implementation = implementation
    random = torch.Generator().manual_seed(0)
    x = torch.randn(40, 24, generator=random).to(dtype)
    chosen = torch.rand(40, 4, generator=random).argsort(dim=1)[:, :2]  # none of them the fifth expert
    weights = torch.rand(40, 2, generator=random)  # float32, as DeepSeek's routers give them
    fused = module(x, chosen, weights)
    with experts_as_linears(module):
        opened = module(x, chosen, weights)
    # products of other sizes, and in eager mode another order of the sum: the dtype's rounding
    assert opened.dtype == fused.dtype == dtype
    assert (opened - fused).abs().max() <= 4 * torch.finfo(dtype).eps * fused.abs().max()
    assert torch.equal(module(x, chosen, weights), fused)


@pytest.mark.parametrize("name", LAYOUTS)
@torch.no_grad()
def test_each_linear_is_its_part_of_the_parameters(name):
    """Outputs of one expert by hand from its linears; then every weight is written, once."""
    module = layout(name)
    x, one = torch.randn(7, 24), torch.ones(7, 1)
    with experts_as_linears(module):
        for i in range(5):
            expert = module._modules[str(i)]
            up = expert.up_proj(x)
            if name == "no gate":
                inner = up.relu().square()
            else:
                both = {"halves": torch.cat, "transposed halves, biases": torch.cat}
                gate = expert.gate_proj(x)
                joined = both[name]([gate, up], -1) if name in both else _interleave(gate, up)
                inner = module._apply_gate(joined)
            wanted = expert.down_proj(inner)
            got = module(x, torch.full((7, 1), i), one)
            assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max()
        found = list(linears(_Model(module)))
        assert [x.weight.shape for x in found] == [(16, 24), (16, 24), (24, 16)][-len(found) // 5 :] * 5
        for number, layer in enumerate(found):
            layer.weight.copy_(torch.full(layer.weight.shape, float(number)))
    values, counts = torch.cat([p.flatten() for p in module.parameters() if p.ndim == 3]).unique(
        return_counts=True
    )
    assert values.tolist() == list(range(len(found)))
    assert set(counts.tolist()) == {16 * 24}


def _interleave(gate, up):
    joined = torch.empty(len(gate), 2 * gate.shape[1])
    joined[:, ::2], joined[:, 1::2] = gate, up
    return joined


class _Model(torch.nn.Module):
    def __init__(self, experts):
        super().__init__()
        self.experts = experts

    def get_output_embeddings(self):
        return None


@pytest.mark.parametrize("kind", MIXTURES)
@torch.no_grad()
def test_the_whole_model_stays_what_it_is(kind):
    model = make_model(kind)
    ids = torch.tensor([WINDOWS[0]])
    fused, before = model(ids).logits, {n: t.clone() for n, t in model.state_dict().items()}
    counted = []
    with experts_as_linears(model):
        assert list(model.state_dict()) == list(before)
        assert {n for n, _ in model.named_parameters()} == before.keys() - _buffers(model)
        found = [n for n, m in model.named_modules() if isinstance(m, ExpertLinear)]
        assert "model.layers.1.mlp.experts.0.gate_proj" in found
        assert len(found) == 3 * 6 * sum(is_open(m) for m in model.modules())
        starved = model.get_submodule(f"model.layers.1.mlp.experts.{STARVED}.up_proj")
        starved.register_forward_pre_hook(lambda _, args: counted.append(len(args[0])))
        opened = model(ids).logits
    assert counted == [0]
    assert (opened - fused).abs().max() < 1e-5 * fused.abs().max()
    assert torch.equal(model(ids).logits, fused)
    assert not any(is_open(m) or isinstance(m, ExpertLinear) for m in model.modules())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def _buffers(model):
    return {name for name, _ in model.named_buffers()}


def test_weights_follow_the_parameters_that_they_are_a_part_of():
    model = make_model("mixtral")
    with experts_as_linears(model):
        linear = model.get_submodule("model.layers.0.mlp.experts.2.up_proj")
        assert (linear.out_features, linear.in_features) == (96, 64)
        model.to(torch.bfloat16)  # as moving a block to a device and back: parameters get other data
        assert linear.weight.dtype == torch.bfloat16
        linear.weight.data.zero_()
    assert (model.model.layers[0].mlp.experts.gate_up_proj[2, 96:] == 0).all()
    assert (model.model.layers[0].mlp.experts.gate_up_proj[2, :96] != 0).any()


def test_an_error_leaves_the_model_as_it_was():
    model = make_model("mixtral")
    with pytest.raises(ZeroDivisionError), experts_as_linears(model):
        1 / 0  # noqa: B018
    experts = model.model.layers[0].mlp.experts
    assert not is_open(experts) and "forward" not in vars(experts) and not list(experts.children())[1:]


def test_a_model_without_experts_is_left_alone():
    model = make_model("llama")
    names = [n for n, _ in model.named_modules()]
    with experts_as_linears(model):
        assert [n for n, _ in model.named_modules()] == names


def test_names():
    assert expert_of("model.layers.3.mlp.experts.17.up_proj") == ("model.layers.3.mlp.experts", 17)
    assert expert_of("model.layers.3.mlp.shared_experts.up_proj") is None
    assert expert_of("model.layers.3.self_attn.q_proj") is None
