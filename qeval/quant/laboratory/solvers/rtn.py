"""Round to nearest: what every other solver has to beat."""

from __future__ import annotations

from torch import Tensor

from qeval.formats.affine import fit_grid
from qeval.quant.laboratory.solvers.base import GridRules, Solution, consecutive, facts, snap_to


def rtn(weight: Tensor, hessian: Tensor, rules: GridRules) -> Solution:
    """W [out, in] on its min/max grid. ``hessian`` [in, in] serves the loss alone."""
    weight = weight.float()
    width = rules.width(weight.shape[1])
    grid = fit_grid(weight, rules.num_bits, width, rules.symmetric)
    group_of = consecutive(weight.shape[1], width, weight.device)
    rounded = snap_to(weight, grid, group_of)
    size = rules.dense_bytes((weight.shape[0], weight.shape[1]))
    return Solution(rounded, grid, group_of, None, size, facts(weight, rounded, hessian))
