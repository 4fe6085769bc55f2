"""Error feedback: each column is rounded, and the columns behind it make up for what that lost.

GPTQ (arXiv 2210.17323, section 3.3, algorithm 1) and SpQR (arXiv 2306.03078, algorithm 1). With the
damped Hessian's inverse H^-1 = U^T U, U upper triangular, for column i:
    q = round(w_i);  e = (w_i - q) / U_ii;  W[:, i:] -= e U[i, i:]
Inside a block of 128 columns that is a loop (columns.py); the columns behind it get one matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from qeval.errors import BuildError
from qeval.quant.solvers.columns import round_columns
from qeval.quant.solvers.rounding import Rounder

BLOCK_SIZE = 128
_LARGEST_DAMPING = 10.0  # of the mean diagonal; no real Hessian needs it


def inverse_factor(hessian: Tensor, percdamp: float) -> tuple[Tensor, float]:
    """U [in, in], upper triangular with (H + damping mean(diag H) I)^-1 = U^T U; and the damping used.

    With the columns reversed, H = R R^T with R upper triangular, so U = R^-1: one factorization and one
    triangular inverse instead of two factorizations and an inverse.

    The damping is ``percdamp``, raised to 10 times as much (at least 1e-4) each time that H has no
    Cholesky factor. A diagonal of 0 counts as 1 (dead inputs).

    Raises:
        BuildError: H holds NaN or infinity, or has no factor at any damping.
    """
    diagonal = hessian.diagonal()
    if not torch.isfinite(diagonal).all():
        raise BuildError("the Hessian is not finite: the layer's inputs hold NaN or infinity")
    damping = percdamp
    while damping <= _LARGEST_DAMPING:
        factor = _try_factor(hessian, damping * float(diagonal.mean()))
        if factor is not None:
            return factor, damping
        damping = max(10 * damping, 1e-4)
    raise BuildError(f"the Hessian has no Cholesky factor at any damping up to {_LARGEST_DAMPING:g}")


def _try_factor(hessian: Tensor, added: float) -> Tensor | None:
    damped = hessian.flip(0, 1)  # a copy
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += added
    lower, failed = torch.linalg.cholesky_ex(damped)
    if failed or not torch.isfinite(lower.diagonal()).all():
        return None
    del damped, diagonal  # each of these is 2.4 GB for 24,576 inputs
    eye = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
    inverse = torch.linalg.solve_triangular(lower, eye, upper=False)
    del lower, eye
    return inverse.flip(0, 1) if torch.isfinite(inverse).all() else None


def feedback(weight: Tensor, factor: Tensor, rounder: Rounder, group_size: int) -> Tensor:
    """Round every column of W [out, in] as ``rounder`` says, the errors fed back by U [in, in].

    Groups are ``group_size`` consecutive columns; each begins with all earlier errors made up for.
    ``factor`` is used up: it is overwritten. Returns [out, in].
    """
    work = rows_of_columns(weight)
    result = torch.empty_like(work)
    coupling = factor.div_(factor.diagonal().clone()[:, None]).neg_()  # -U_ij / U_ii
    for first, last in block_bounds(len(work), group_size, BLOCK_SIZE):
        lost = torch.empty_like(work[first:last])
        for start in range(first, last, group_size):
            end = min(start + group_size, last)
            if start % group_size == 0:
                rounder.start_group(start, work[start : start + group_size])
            run, inside = work[start:end], coupling[start:end, start:end]
            result[start:end] = round_columns(run, inside, rounder.levels(start, end))
            lost[start - first : end - first] = run - result[start:end]
            work[end:last].addmm_(coupling[start:end, end:last].T, lost[start - first : end - first])
        work[last:].addmm_(coupling[first:last, last:].T, lost)
    return result.T.contiguous()


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
