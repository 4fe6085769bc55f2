"""SpQR (arXiv 2306.03078): GPTQ in small groups, sensitive weights kept, scales quantized, too.

The paper's algorithm 1 and section 4, U the factor of GPTQ's inverse Hessian (feedback.py):
    s_ij = ((w_ij - q_ij) / U_jj)^2                     the sensitivity of a weight
    tau  = outlier_threshold * mean_j( Var(W_:j) / U_jj^2 )
Where a group begins, a weight whose absence from it would lower the sum of the group's s by more than
tau (its own s, and what the others gain on a range fitted without it) does not count for the range: it
is replaced by the row's mean of the others. Then, column by column, a weight with s > tau is kept in
float16 and passes no error on.

Scales and zero points of 16 rows (one group of columns) are quantized together to 3 bits between their
smallest and largest, kept as float16: a second level. Zero points then are not whole numbers. Nothing
rounds them before that, neither where outliers are looked for (whole zero points would make a quarter
more outliers and lose 5% more) nor after the scale was (1 to 3%), as in the authors' program. Unlike
theirs, a range always holds 0, which bounds the zero point.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qeval.formats.affine import Grid, fit_grid
from qeval.quant.laboratory.solvers.base import (
    GridRules,
    Solution,
    consecutive,
    facts,
    index_bytes,
    snap,
    snap_to,
    sparse_bytes,
)
from qeval.quant.laboratory.solvers.feedback import factorize, feedback
from qeval.quant.laboratory.solvers.gptq import by_diagonal, without_dead
from qeval.quant.laboratory.solvers.levels import Levels
from qeval.quant.laboratory.solvers.rounding import join, levels_of


@dataclass(frozen=True)
class SecondLevel:
    """How scales and zero points are stored: ``num_bits`` each, ``group_size`` rows share a range."""

    num_bits: int = 3
    group_size: int = 16

    def quantize(self, values: Tensor) -> Tensor:
        """[out] values as stored: between the smallest and the largest of each group of rows."""
        missing = -len(values) % self.group_size
        groups = torch.cat([values, values[-1:].expand(missing)]).view(-1, self.group_size)
        low = groups.amin(1, keepdim=True).half().float()
        step = ((groups.amax(1, keepdim=True) - low) / (2**self.num_bits - 1)).half().float()
        levels = ((groups - low) / step.clamp(min=1e-30)).round().clamp(0, 2**self.num_bits - 1)
        stored: Tensor = (low + levels * step).flatten()
        return stored[: len(values)]

    def stored_bytes(self, rows: int) -> int:
        """Bytes of one group's column of scales, or of zero points: two float16 for each range."""
        return -(-rows * self.num_bits // 8) + 4 * -(-rows // self.group_size)


def spqr(
    weight: Tensor,
    hessian: Tensor,
    rules: GridRules,
    *,
    outlier_threshold: float | None = 0.2,
    second_level: SecondLevel | None = SecondLevel(),
    percdamp: float = 1.0,
    act_order: bool = False,
) -> Solution:
    """Quantize W [out, in] for inputs with H = X X^T [in, in].

    Args:
        outlier_threshold: relative to the weights' sensitivity, not a share; None: no outliers.
        second_level: None: float16 scales and whole zero points, as GPTQ's.
        percdamp: as GPTQ's; 1.0 is the paper's.

    Raises:
        BuildError: H is not finite or has no Cholesky factor; the group size does not divide.
    """
    original, n = weight.float(), weight.shape[1]
    width = rules.width(n)
    order = by_diagonal(hessian) if act_order else torch.arange(n, device=weight.device)
    weight = without_dead(original, hessian)[:, order]
    factor, damping = factorize(hessian, percdamp, order if act_order else None)
    diagonal = factor.diagonal().reciprocal()  # U's
    tau = float("inf")
    if outlier_threshold is not None:
        tau = outlier_threshold * float((weight.var(dim=0) / diagonal.square()).mean())
    rounder = OutlierGroups(rules, diagonal, tau, second_level)
    result, back = feedback(weight, factor, rounder, width), order.argsort()
    grid = rounder.grid()
    group_of = consecutive(n, width, weight.device)
    result, group_of = result[:, back], group_of[back]
    mask = None
    if outlier_threshold is not None:
        mask = snap_to(result, grid, group_of) != result  # what is no level was kept
    told = facts(original, result, hessian, damping=(percdamp, damping), outliers=mask)
    shape = (weight.shape[0], n)
    size = _dense_bytes(shape, rules, second_level) + index_bytes(group_of, width)
    size += sparse_bytes(shape, int(mask.sum())) if mask is not None else 0
    return Solution(result, grid, group_of, mask, size, told)


def _dense_bytes(shape: tuple[int, int], rules: GridRules, second: SecondLevel | None) -> int:
    if second is None:
        return rules.dense_bytes(shape)
    rows, columns = shape
    n_groups = columns // rules.width(columns)
    statistics = 1 if rules.symmetric else 2  # scales, zero points
    return rows * -(-columns * rules.num_bits // 8) + statistics * n_groups * second.stored_bytes(rows)


class OutlierGroups:
    """A Rounder that fits each group's grid without outliers, and keeps what is one."""

    def __init__(
        self, rules: GridRules, diagonal: Tensor, tau: float, second: SecondLevel | None
    ) -> None:
        """``diagonal`` [in] is U's."""
        self._rules, self._second = rules, second
        self._diagonal, self._tau = diagonal, tau
        self._grids: list[Grid] = []

    def start_group(self, first: int, columns: Tensor) -> None:
        group = columns.T  # [out, group]
        if self._tau < float("inf"):
            near = self._diagonal[first : first + group.shape[1]]
            gain = leave_one_out(group, near, self.fit)
            inlier = gain <= self._tau
            mean = (group * inlier).sum(1) / inlier.sum(1).clamp(min=1)
            group = torch.where(inlier, group, mean[:, None])
        self._grids.append(self._stored(self.fit(group)))

    def levels(self, first: int, last: int) -> Levels:
        limit = self._tau * self._diagonal[first:last].square()
        return levels_of(self._grids[-1], limit if self._tau < float("inf") else None)

    def grid(self) -> Grid:
        return join(self._grids)

    def fit(self, group: Tensor) -> Grid:
        """The min/max grid of every row of [n, group]. What a second level is going to round, zero
        points, is not rounded before it."""
        grid = fit_grid(group, self._rules.num_bits, -1, self._rules.symmetric)
        if self._second is None or self._rules.symmetric:
            return grid
        return replace(grid, zero_point=-group.amin(1, keepdim=True).clamp(max=0) / grid.scale)

    def _stored(self, grid: Grid) -> Grid:
        """The grid with its scales and zero points as the second level keeps them."""
        if self._second is None:
            return grid
        scale = self._second.quantize(grid.scale[:, 0])[:, None]
        if self._rules.symmetric:
            return replace(grid, scale=scale)
        return replace(
            grid, scale=scale, zero_point=self._second.quantize(grid.zero_point[:, 0])[:, None]
        )


def leave_one_out(group: Tensor, diagonal: Tensor, fit: Callable[[Tensor], Grid]) -> Tensor:
    """[out, group]: by how much the group's sum of sensitivities falls if that weight is taken out and
    the range refitted. ``diagonal`` [group] is U's; ``fit`` makes the grids of rows [n, group].

    Only the smallest and the largest weight can move the range: for all others it is their own
    sensitivity. One that is taken out counts as 0 for the range, which is in every range.
    """
    sensitivity = _sensitivity(group, diagonal, fit)
    gain = sensitivity.clone()
    for extreme in (group.argmin(1, keepdim=True), group.argmax(1, keepdim=True)):
        without = _sensitivity(group.scatter(1, extreme, 0.0), diagonal, fit)
        without.scatter_(1, extreme, 0.0)
        gain.scatter_(1, extreme, (sensitivity - without).sum(1, keepdim=True))
    return gain


def _sensitivity(weights: Tensor, diagonal: Tensor, fit: Callable[[Tensor], Grid]) -> Tensor:
    """((w - q) / U_jj)^2 of every row [n, group] on its own grid."""
    grid = fit(weights)
    rounded = snap(weights, grid.scale, grid.zero_point, grid.low, grid.high)
    return ((weights - rounded) / diagonal).square()
