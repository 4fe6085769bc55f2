"""AWQ's clipping: through H it is what its definition on tokens is."""

import pytest
import torch
from families import one_thread

from qeval.formats.affine import fake_quantize, stored_bytes
from qeval.quant.laboratory.solvers.base import GridRules, off_grid
from qeval.quant.laboratory.solvers.clipping import CUTS, clipped_rtn, diagonal_blocks, group_losses
from qeval.quant.laboratory.solvers.rtn import rtn

_one_thread = pytest.fixture(autouse=True)(one_thread)

RULES = [GridRules(3, 16), GridRules(4, 32, True), GridRules(2, -1), GridRules(3, -1, True)]


def layer(seed=0, rows=24, columns=64, tokens=200):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) ** 3  # long tails
    mix = torch.randn(columns, columns, generator=generator) / 8 + torch.eye(columns)
    x = mix @ torch.randn(columns, tokens, generator=generator)
    return weight, x


def by_tokens(weight, x, rules):
    """The definition, group by group and row by row: the error of what a group adds to each token."""
    width = rules.width(weight.shape[1])
    out = torch.empty_like(weight)
    for first in range(0, weight.shape[1], width):
        own = slice(first, first + width)
        for row, w in enumerate(weight[:, own]):
            tried = []
            for i in range(10):
                cut = w.abs().max() * (1 - i / 20)
                q = fake_quantize(w.clamp(-cut, cut)[None], rules.num_bits, -1, rules.symmetric)[0]
                tried.append(((q - w) @ x[own]).double().square().mean().item())
            cut = w.abs().max() * (1 - tried.index(min(tried)) / 20)
            out[row, own] = fake_quantize(
                w.clamp(-cut, cut)[None], rules.num_bits, -1, rules.symmetric
            )[0]
    return out


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_through_the_hessian_it_is_what_it_is_on_tokens(rules):
    weight, x = layer()
    solution = clipped_rtn(weight, x @ x.T / x.shape[1], rules)
    assert torch.equal(solution.weight, by_tokens(weight, x, rules))
    assert 0.1 < solution.facts.clipped_share < 1
    assert off_grid(solution) == 0
    assert solution.stored_bytes == stored_bytes(
        (24, 64), rules.num_bits, rules.group_size, rules.symmetric
    )


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_no_group_loses_more_than_unclipped(rules):
    weight, x = layer(1)
    hessian = x @ x.T
    blocks = diagonal_blocks(hessian, rules.width(64))
    clipped, plain = (solve(weight, hessian, rules) for solve in (clipped_rtn, rtn))
    lost = [group_losses(weight - s.weight, blocks) for s in (clipped, plain)]
    assert (lost[0] <= lost[1] * (1 + 1e-5)).all()
    assert lost[0].sum() < 0.95 * lost[1].sum()


def test_losses_of_groups_are_those_of_their_own_inputs():
    weight, x = layer(2)
    lost = group_losses(weight, diagonal_blocks(x @ x.T, 16))
    for g in range(4):
        own = slice(16 * g, 16 * g + 16)
        wanted = (weight[:, own] @ x[own]).square().sum(1)
        torch.testing.assert_close(lost[:, g], wanted)


def test_where_nothing_is_gained_nothing_is_clipped():
    weight = torch.tensor([[-1.0, 1.0] * 8])  # two levels: any cut only moves them
    solution = clipped_rtn(weight, torch.eye(16), GridRules(4))
    assert solution.facts.clipped_share == 0
    assert torch.equal(solution.weight, rtn(weight, torch.eye(16), GridRules(4)).weight)
    assert CUTS[0] == 1 and CUTS[-1] == 0.55


def test_the_scale_of_the_hessian_does_not_matter_and_dead_inputs_do_no_harm():
    weight, x = layer(3)
    x[5] = 0
    one, other = (clipped_rtn(weight, c * x @ x.T, GridRules(3, 16)) for c in (1.0, 64.0))
    assert torch.equal(one.weight, other.weight)
    assert one.facts.dead_columns == 1
    zero = clipped_rtn(weight, torch.zeros(64, 64), GridRules(3, 16))
    assert torch.equal(zero.weight, rtn(weight, torch.zeros(64, 64), GridRules(3, 16)).weight)
