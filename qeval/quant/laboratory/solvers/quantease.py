"""QuantEase (arXiv 2309.01885): coordinate descent on the layer's loss, no inverse of anything.

The paper's update of column j (its lemma 1 and algorithm 2), with S = H, N_kj = S_kj / S_jj for k != j
and N_jj = 0, for a target T (W, or W - O where there are outliers) and the current B:
    B_j <- Q( T_j + sum_k (T - B)_k N_kj )
This is its (P - P^)_j written with the residual T - B: the large products of W and of B, which nearly
cancel, never appear. One sweep is one product of [out, in] with [in, in], cut into blocks of 128
columns: before each block, the residual as it is by then; inside it, one column after the other.

The relaxation (the paper's section 3.3): in the sweeps t with t % 3 == 1, the last five apart, columns
stay unrounded. The paper takes the last sweep's result; this one takes the best sweep that rounds, and
so is never worse than its start.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qeval.formats.affine import Grid
from qeval.quant.laboratory.solvers.base import GridRules, Solution, facts
from qeval.quant.laboratory.solvers.columns import round_columns
from qeval.quant.laboratory.solvers.feedback import BLOCK_SIZE, rows_of_columns
from qeval.quant.laboratory.solvers.gptq import gptq
from qeval.quant.laboratory.solvers.levels import Levels
from qeval.quant.laboratory.solvers.rtn import rtn


@dataclass(frozen=True)
class Descending:
    """How the descent goes: the paper's settings."""

    sweeps: int = 30
    relax: bool = True  # leave some sweeps unrounded; without it the loss never rises

    def rounds(self, sweep: int) -> bool:
        """Whether sweep 0, 1, ... rounds its columns: of 30, all but 1, 4, 7, ..., 25."""
        return not (self.relax and sweep % 3 == 1 and sweep <= self.sweeps - 5)


PAPERS = Descending()


def quantease(
    weight: Tensor,
    hessian: Tensor,
    rules: GridRules,
    *,
    how: Descending = PAPERS,
    start: Solution | None = None,
) -> Solution:
    """Quantize W [out, in] for inputs with H = X X^T [in, in].

    Args:
        start: where to begin, and on which grid; not given: round to nearest.
    """
    weight = weight.float()
    start = start or rtn(weight, hessian, rules)
    descent = Descent(hessian, start.grid, start.group_of)
    current = rows_of_columns(start.weight)
    target = descent.target(weight.T, current)
    now = best_loss = start.facts.loss
    best, best_sweep = current.clone(), 0
    for sweep in range(how.sweeps):
        gained = descent.sweep(current, target, rounded=how.rounds(sweep))
        now -= gained
        if how.rounds(sweep) and now < best_loss:
            best_loss, best_sweep = now, sweep + 1
            best.copy_(current)
        if gained == 0 and not how.relax:
            break  # nothing moved, so nothing will
    result = best.T.contiguous()
    told = facts(weight, result, hessian, damping=_damping(start), sweeps=best_sweep)
    if told.loss > start.facts.loss:  # by float32's rounding alone
        return start
    return Solution(result, start.grid, start.group_of, None, start.stored_bytes, told)


def gptq_quantease(
    weight: Tensor,
    hessian: Tensor,
    rules: GridRules,
    *,
    percdamp: float = 0.01,
    how: Descending = PAPERS,
) -> Solution:
    """GPTQ with act_order and static groups, then QuantEase on its grid: never worse than either's
    start. Groups stay consecutive inputs, so nothing is stored beside the grid."""
    start = gptq(weight, hessian, rules, percdamp=percdamp, act_order=True, static_groups=True)
    return quantease(weight, hessian, rules, how=how, start=start)


def _damping(start: Solution) -> tuple[float, float] | None:
    asked, used = start.facts.damping_asked, start.facts.damping
    return None if asked is None or used is None else (asked, used)


class Descent:
    """Sweeps of the column update over one layer. Matrices are [in, out]: W^T, B^T, T^T."""

    def __init__(self, hessian: Tensor, grid: Grid, group_of: Tensor) -> None:
        """``hessian`` [in, in]; ``group_of`` [in] is the group of each column in ``grid``."""
        self.diagonal = hessian.diagonal()
        self.dead = self.diagonal == 0
        self.coupling = hessian / torch.where(self.dead, 1.0, self.diagonal)  # N_kj = S_kj / S_jj
        self.coupling.fill_diagonal_(0)
        self._grid, self._group_of = grid, group_of

    def target(self, wanted: Tensor, current: Tensor) -> Tensor:
        """T: what is wanted, except for dead inputs (S_jj = 0), which keep what they have."""
        return torch.where(self.dead[:, None], current, wanted).contiguous()

    def sweep(self, current: Tensor, target: Tensor, *, rounded: bool) -> float:
        """Update every column of ``current`` in place; returns by how much the loss fell."""
        residual = target - current
        gained = torch.zeros((), dtype=torch.float64, device=current.device)
        for first in range(0, len(current), BLOCK_SIZE):
            rows = slice(first, min(first + BLOCK_SIZE, len(current)))
            before = current[rows].clone()
            wanted = torch.addmm(target[rows], self.coupling[:, rows].T, residual)
            levels = self._levels(rows) if rounded else None
            current[rows] = round_columns(wanted, self.coupling[rows, rows], levels, before)
            residual[rows] = target[rows] - current[rows]
            gained += self._gain(rows, wanted, before, current[rows])
        return float(gained)

    def _levels(self, rows: slice) -> Levels:
        groups = self._group_of[rows]
        scale, zero_point = (x[:, groups].T for x in (self._grid.scale, self._grid.zero_point))
        return Levels(scale.contiguous(), zero_point.contiguous(), self._grid.low, self._grid.high)

    def _gain(self, rows: slice, wanted: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """The loss of a column is S_jj (B_j - wanted_j)^2 and what does not depend on B_j."""
        fell = (before - wanted).square_() - (after - wanted).square_()
        return (self.diagonal[rows, None] * fell).sum(dtype=torch.float64)
