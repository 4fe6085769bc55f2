"""GPTQ (arXiv 2210.17323): columns rounded one by one, later ones make up for the error.

The paper's algorithm 1 with the additions of its authors' program: ``act_order`` (columns by falling
diagonal of H), groups whose grids are found where the group begins, ``static_groups`` (all grids found
beforehand, so that act_order leaves groups of consecutive inputs), dead inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qeval.formats.affine import Grid, fit_grid
from qeval.quant.laboratory.solvers.base import GridRules, Solution, consecutive, facts, index_bytes
from qeval.quant.laboratory.solvers.feedback import factorize, feedback
from qeval.quant.laboratory.solvers.rounding import FittedGroups, FixedGrid


def gptq(
    weight: Tensor,
    hessian: Tensor,
    rules: GridRules,
    *,
    percdamp: float = 0.01,
    act_order: bool = False,
    static_groups: bool = False,
    grid: Grid | None = None,
) -> Solution:
    """Quantize W [out, in] for inputs with H = X X^T [in, in].

    Args:
        percdamp: added to H's diagonal, as a share of its mean; ``facts.damping`` is what was used.
        act_order: process columns by falling diag(H).
        static_groups: find every group's grid in W before anything is updated.
        grid: of consecutive groups; given, it is used as it is (implies static_groups).

    Raises:
        BuildError: H is not finite or has no Cholesky factor; the group size does not divide.
    """
    original, n = weight.float(), weight.shape[1]
    width = rules.width(n)
    weight = without_dead(original, hessian)
    order = by_diagonal(hessian) if act_order else torch.arange(n, device=weight.device)
    factor, damping = factorize(hessian, percdamp, order if act_order else None)
    group_of = consecutive(n, width, weight.device)
    if static_groups or grid is not None:
        grid = grid or fit_grid(weight, rules.num_bits, width, rules.symmetric)
        rounded = feedback(weight[:, order], factor, FixedGrid(grid, group_of[order]), n)
    else:
        fitted = FittedGroups(rules)
        rounded = feedback(weight[:, order], factor, fitted, width)
        grid = fitted.grid()
        group_of = group_of[order.argsort()]  # groups of columns that were processed together
    rounded = rounded[:, order.argsort()]
    size = rules.dense_bytes((weight.shape[0], n)) + index_bytes(group_of, width)
    told = facts(original, rounded, hessian, damping=(percdamp, damping))
    return Solution(rounded, grid, group_of, None, size, told)


def by_diagonal(hessian: Tensor) -> Tensor:
    """[in]: columns by falling diagonal of H; equal ones stay in their order."""
    return torch.argsort(hessian.diagonal(), descending=True, stable=True)


def without_dead(weight: Tensor, hessian: Tensor) -> Tensor:
    """A copy with the columns of inputs that were always 0 set to 0, as GPTQ's authors do: their
    weights are never used, and would only widen the grid."""
    return weight.masked_fill(hessian.diagonal() == 0, 0.0)
