"""The rounding floor: noise of the right size, in every family, and anew at each call."""

import numpy as np
import pytest
import torch
from families import FAMILIES, WINDOWS, make_model, one_thread  # noqa: F401

from qeval.engines.low_bits import add_rounding_noise


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_every_layer_gets_noise_of_two_to_the_minus_nine(family):
    model = make_model(family).float().eval()
    ids = torch.tensor(WINDOWS[:1])
    clean = model(ids).logits
    add_rounding_noise(model)
    first, second = model(ids).logits, model(ids).logits
    assert not torch.equal(first, second)
    change = ((first - clean).std() / clean.std()).item()
    assert 1e-4 < change < 0.1


@torch.inference_mode()
def test_noise_is_that_of_rounding_to_bfloat16():
    """Half an ulp at most, 2^-9 relative: rounding's own error is a third of the bound on average."""
    layer = torch.nn.Module()
    layer.blocks = torch.nn.ModuleList([torch.nn.Identity()])
    layer.config = type(
        "C",
        (),
        {"model_type": "x", "get_text_config": lambda self: type("T", (), {"num_hidden_layers": 1})},
    )()
    layer.forward = lambda x: layer.blocks[0](x)
    add_rounding_noise(layer, seed=1)
    x = torch.randn(200_000) + 3
    relative = ((layer.blocks[0](x) - x) / x).double()
    assert relative.std().item() == pytest.approx(2**-9, rel=0.01)
    assert abs(relative.mean().item()) < 2e-5
    rounding = (x.bfloat16().float() - x) / x
    assert 0.3 < (rounding.std() / relative.std()).item() < 1


def test_seeds_decide_the_noise():
    def logits(seed):
        model = make_model("llama").float().eval()
        add_rounding_noise(model, seed)
        with torch.inference_mode():
            return model(torch.tensor(WINDOWS[:1])).logits.numpy()

    assert np.array_equal(logits(0), logits(0)) and not np.array_equal(logits(0), logits(1))
