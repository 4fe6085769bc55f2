"""AWQ's clipping (arXiv 2306.00978, and its authors' program): round to nearest on a range that is cut
for each row and group, where that loses less.

    cut = max|w| (1 - i/20), i = 0 .. 9;  e = w - Q(clamp(w, -cut, cut));  least e H_gg e^T
over the weights w [group] of one row and group, H_gg the block of H at the group's own inputs. With H
the mean of x x^T that is the mean squared error of what the group adds to the output; the authors'
program takes it from about 512 tokens, H has all of them.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from qeval.formats.affine import Grid, fit_grid
from qeval.quant.laboratory.solvers.base import GridRules, Solution, consecutive, facts, snap_to

CUTS = tuple(1 - i / 20 for i in range(10))


def clipped_rtn(weight: Tensor, hessian: Tensor, rules: GridRules) -> Solution:
    """Quantize W [out, in] for inputs with H = X X^T [in, in]; ``facts.clipped_share`` is that of the
    rows' groups."""
    weight = weight.float()
    rows, n = weight.shape
    width = rules.width(n)
    group_of = consecutive(n, width, weight.device)
    blocks = diagonal_blocks(hessian, width)
    largest = weight.view(rows, -1, width).abs().amax(-1)  # [out, n_groups]
    limit, least = largest, torch.full_like(largest, torch.inf)
    for cut in CUTS:
        lost = group_losses(weight - _on_grid(weight, largest * cut, rules)[0], blocks)
        better = lost < least
        least = torch.where(better, lost, least)
        limit = torch.where(better, largest * cut, limit)
    rounded, grid = _on_grid(weight, limit, rules)
    told = facts(weight, rounded, hessian)
    told = replace(told, clipped_share=float((limit < largest).float().mean()))
    return Solution(rounded, grid, group_of, None, rules.dense_bytes((rows, n)), told)


def diagonal_blocks(hessian: Tensor, width: int) -> Tensor:
    """H [in, in] at each group's own inputs: [n_groups, width, width]."""
    n_groups = len(hessian) // width
    square = hessian.view(n_groups, width, n_groups, width)
    return square.diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def group_losses(error: Tensor, blocks: Tensor) -> Tensor:
    """e H_gg e^T of every row and group: error [out, in] -> [out, n_groups]."""
    groups = error.view(len(error), *blocks.shape[:2]).transpose(0, 1)  # [n_groups, out, width]
    return ((groups @ blocks) * groups).sum(-1).T


def _on_grid(weight: Tensor, limit: Tensor, rules: GridRules) -> tuple[Tensor, Grid]:
    """``weight`` [out, in] clamped to +- ``limit`` [out, n_groups] and rounded to the grid of what is
    left."""
    cut = limit[..., None]
    kept = weight.view(*limit.shape, -1).clamp(-cut, cut).flatten(1)
    width = rules.width(weight.shape[1])
    grid = fit_grid(kept, rules.num_bits, width, rules.symmetric)
    return snap_to(kept, grid, consecutive(weight.shape[1], width, weight.device)), grid
