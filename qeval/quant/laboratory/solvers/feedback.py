"""Error feedback: each column is rounded, and the columns behind it make up for what that lost.

GPTQ (arXiv 2210.17323, section 3.3, algorithm 1) and SpQR (arXiv 2306.03078, algorithm 1) with the
damped Hessian's inverse H^-1 = U^T U, U upper triangular, for column i:
    q = round(w_i);  e = (w_i - q) / U_ii;  W[:, i:] -= e U[i, i:]
U is the inverse of R in H = R R^T, R upper triangular, and in terms of R the same columns come out of
    column j, when its turn comes, is w_j + sum_{i < j} (w_i - q_i) R_ij / R_jj
with w the weights as they were: the loss is sum_j ( sum_{i <= j} (w_i - q_i) R_ij )^2, and each q_j
makes its own term as small as can be (Babai's nearest plane). That saves the inverse: one matrix
[in, in] of four at the peak, and three quarters of the operations of factorizing. Inside a block of 128
columns it is a loop (columns.py); the columns behind get one matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from qeval.core.errors import BuildError
from qeval.quant.laboratory.solvers.columns import round_columns
from qeval.quant.laboratory.solvers.rounding import Rounder

BLOCK_SIZE = 128
_LARGEST_DAMPING = 10.0  # of the mean diagonal; no real Hessian needs it


def factorize(hessian: Tensor, percdamp: float, order: Tensor | None = None) -> tuple[Tensor, float]:
    """R [in, in], upper triangular with H + damping mean(diag H) I = R R^T; and the damping used.

    ``order`` [in]: of H's columns, if not their own. The damping is ``percdamp``, raised to 10 times as
    much (at least 1e-4) each time that H has no Cholesky factor. A diagonal of 0 (dead inputs) counts
    as 1.

    Raises:
        BuildError: H holds NaN or infinity, or has no factor at any damping.
    """
    diagonal = hessian.diagonal()
    if not torch.isfinite(diagonal).all():
        raise BuildError("the Hessian is not finite: the layer's inputs hold NaN or infinity")
    damping, mean = percdamp, float(diagonal.mean())
    while damping <= _LARGEST_DAMPING:
        factor = _try_factor(hessian, damping * mean, order)
        if factor is not None:
            return factor, damping
        damping = max(10 * damping, 1e-4)
    raise BuildError(f"the Hessian has no Cholesky factor at any damping up to {_LARGEST_DAMPING:g}")


def _try_factor(hessian: Tensor, added: float, order: Tensor | None) -> Tensor | None:
    """With the columns reversed, R is the lower factor."""
    if order is None:
        damped = hessian.flip(0, 1)  # a copy
    else:
        turned = order.flip(0)
        # One index after the other: with both at once CUDA writes them out, 64 bits an element each.
        damped = hessian[turned][:, turned]
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += added
    lower, failed = torch.linalg.cholesky_ex(damped)
    if failed or not torch.isfinite(lower.diagonal()).all():
        return None
    del damped, diagonal  # each of these is 2.4 GB for 24,576 inputs
    factor: Tensor = lower.flip(0, 1)
    return factor


def feedback(weight: Tensor, factor: Tensor, rounder: Rounder, group_size: int) -> Tensor:
    """Round every column of W [out, in] as ``rounder`` says, the errors fed back by R [in, in].

    Groups are ``group_size`` consecutive columns; each begins with all earlier errors made up for.
    ``factor`` is used up: it is overwritten. Returns [out, in].
    """
    exact = rows_of_columns(weight)
    work, result = exact.clone(), torch.empty_like(exact)
    coupling = factor.div_(factor.diagonal().clone())  # R_ij / R_jj
    for first, last in block_bounds(len(work), group_size, BLOCK_SIZE):
        for start in range(first, last, group_size):
            end = min(start + group_size, last)
            if start % group_size == 0:
                group = slice(start, start + group_size)
                rounder.start_group(start, made_up(exact[group], work[group], coupling[group, group]))
            run, inside = work[start:end], coupling[start:end, start:end]
            levels = rounder.levels(start, end)
            result[start:end] = round_columns(run, inside, levels, exact[start:end])
            lost = exact[start:end] - result[start:end]
            work[end:last].addmm_(coupling[start:end, end:last].T, lost)
        work[last:].addmm_(coupling[first:last, last:].T, exact[first:last] - result[first:last])
    return result.T.contiguous()


def made_up(exact: Tensor, work: Tensor, coupling: Tensor) -> Tensor:
    """What the columns of a group, [group, out], would have to be to make up for all that was lost
    before them: a later one's ``work`` waits for what those before it in the group really become."""
    short = torch.linalg.solve_triangular(coupling.T, exact - work, upper=False, unitriangular=True)
    moved: Tensor = exact - short
    return moved


def rows_of_columns(weight: Tensor) -> Tensor:
    """W^T [in, out], a copy in which a column of W lies together, whatever W's own layout (a Conv1D's
    is that already)."""
    return weight.T.clone(memory_format=torch.contiguous_format)


def block_bounds(n: int, group_size: int, block_size: int) -> Iterator[tuple[int, int]]:
    """Blocks of at most ``block_size`` columns: several whole groups, or a part of one."""
    if group_size <= block_size:
        stride = whole = group_size * (block_size // group_size)
    else:
        stride, whole = block_size, group_size
    for start in range(0, n, whole):
        end = min(start + whole, n)
        yield from ((first, min(first + stride, end)) for first in range(start, end, stride))
