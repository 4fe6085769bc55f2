"""QuantEase with outliers (arXiv 2309.01885, section 4 and algorithm 3): some weights stay floats.

    min || W X - (B + O) X ||^2,  B [out, in] on the grid, O [out, in] with few entries (or columns)
O begins as the largest weights (or the columns of largest norm), and the grid's range is that of what
is left, W - O: that is where most of the gain comes from. Then, in turn,
    a sweep of QuantEase's column update of B for the target W - O
    O <- Top_s( O - eta ((B + O) S - W S) ),  eta = 1 / lambda_max(S), S = H
As in quantease.py the best sweep that rounds is taken. At the end outliers are rounded to float16, and
what is no outlier lies on the grid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qeval.formats.affine import fit_grid
from qeval.quant.laboratory.solvers.base import GridRules, Solution, column_bytes, facts, sparse_bytes
from qeval.quant.laboratory.solvers.feedback import rows_of_columns
from qeval.quant.laboratory.solvers.gptq import gptq
from qeval.quant.laboratory.solvers.quantease import PAPERS, Descending, Descent
from qeval.quant.laboratory.solvers.rtn import rtn


@dataclass(frozen=True)
class Outliers:
    """How many weights stay floats: a share of all entries, or of the columns."""

    share: float
    structured: bool = False  # whole columns (inputs) instead of single entries

    def keep(self, values: Tensor) -> Tensor:
        """``values`` [in, out] with all but the largest entries, or rows by norm, set to 0."""
        sizes = values.norm(dim=1) if self.structured else values.abs().flatten()
        mask = torch.zeros_like(sizes, dtype=torch.bool)
        mask[sizes.topk(round(self.share * len(sizes))).indices] = True
        return values * (mask[:, None] if self.structured else mask.view_as(values))

    def stored_bytes(self, mask: Tensor) -> int:
        """Bytes of the outliers in ``mask`` [out, in]."""
        shape = (mask.shape[0], mask.shape[1])
        if self.structured:
            return column_bytes(shape, int(mask.any(0).sum()))
        return sparse_bytes(shape, int(mask.sum()))


def quantease_outliers(
    weight: Tensor,
    hessian: Tensor,
    rules: GridRules,
    *,
    outliers: Outliers,
    how: Descending = PAPERS,
    percdamp: float | None = None,
) -> Solution:
    """Quantize W [out, in] for inputs with H = X X^T [in, in], a share of the weights kept as floats.

    Args:
        percdamp: given, B begins as act-order GPTQ of W - O with that damping; else rounded to nearest.
    """
    weight = weight.float()
    kept = outliers.keep(rows_of_columns(weight))  # O^T [in, out]
    start = _start(weight - kept.T, hessian, rules, percdamp)
    descent = Descent(hessian, start.grid, start.group_of)
    step = 1 / largest_eigenvalue(hessian)
    current = rows_of_columns(start.weight)
    best, best_loss, best_sweep = (current.clone(), kept), float("inf"), 0
    for sweep in range(how.sweeps):
        target = descent.target(weight.T - kept, current)
        descent.sweep(current, target, rounded=how.rounds(sweep))
        residual = weight.T - kept - current
        gradient = hessian @ residual  # -((B + O) S - W S)^T
        now = float((residual * gradient).sum(dtype=torch.float64))
        if how.rounds(sweep) and now < best_loss:
            best, best_loss, best_sweep = (current.clone(), kept), now, sweep + 1
        kept = outliers.keep(kept + step * gradient)
    return _solution(weight, hessian, start, best, outliers, best_sweep)


def _start(dense: Tensor, hessian: Tensor, rules: GridRules, percdamp: float | None) -> Solution:
    """B on the grid of ``dense`` = W - O [out, in]."""
    if percdamp is None:
        return rtn(dense, hessian, rules)
    grid = fit_grid(dense, rules.num_bits, rules.width(dense.shape[1]), rules.symmetric)
    return gptq(dense, hessian, rules, percdamp=percdamp, act_order=True, grid=grid)


def _solution(
    weight: Tensor,
    hessian: Tensor,
    start: Solution,
    best: tuple[Tensor, Tensor],
    outliers: Outliers,
    sweep: int,
) -> Solution:
    """B + O of the best sweep, outliers in float16."""
    dense, kept = (part.T for part in best)
    mask = kept != 0
    result = torch.where(mask, (dense + kept).half().float(), dense).contiguous()
    told = facts(weight, result, hessian, outliers=mask, sweeps=sweep)
    return Solution(
        weight=result,
        grid=start.grid,
        group_of=start.group_of,
        outliers=mask,
        stored_bytes=start.stored_bytes + outliers.stored_bytes(mask),
        facts=replace(told, damping=start.facts.damping, damping_asked=start.facts.damping_asked),
    )


def largest_eigenvalue(hessian: Tensor, iterations: int = 50) -> float:
    """lambda_max of H [in, in] by power iteration, and one percent: from below it never quite arrives,
    and a step of more than 1 / lambda_max could raise the loss. 1 where H is 0."""
    vector = torch.ones(len(hessian), dtype=hessian.dtype, device=hessian.device)
    vector += hessian.diagonal() / hessian.diagonal().max().clamp(min=1e-30)
    value = 0.0
    for _ in range(iterations):
        vector = hessian @ (vector / vector.norm().clamp(min=1e-30))
        value = float(vector.norm())
    return 1.01 * value or 1.0
