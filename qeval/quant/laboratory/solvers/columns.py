"""A run of columns rounded one after the other, each passing on what it could not keep.

The inner loop of every solver here. Column i becomes q_i = round(v_i), and each column j behind it gets
    v_j += C_ij (r_i - q_i)
GPTQ and SpQR: r_i is the weight as it was and C_ij = R_ij / R_jj (feedback.py); QuantEase: r_i is the
column before its update and C_ij = S_ij / S_jj (quantease.py). On CUDA one kernel does the whole run
(columns_triton.py): as separate operations it takes about 200 times as long.

Columns lie in memory as rows: a matrix of columns is [n, out].
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from qeval.quant.laboratory.solvers.levels import Levels


def round_columns(
    values: Tensor, coupling: Tensor, levels: Levels | None, reference: Tensor | None = None
) -> Tensor:
    """Round the columns ``values`` [n, out] in order; returns what they became, [n, out].

    ``values`` is changed: afterwards each row is what that column was when its turn came.

    Args:
        coupling: [n, n]; only what is above the diagonal is read.
        levels: None: columns stay as they are when their turn comes.
        reference: r [n, out]; None: the columns themselves.
    """
    if values.is_cuda and has_triton():
        from qeval.quant.laboratory.solvers.columns_triton import round_on_cuda

        return round_on_cuda(values, coupling, levels, reference)
    result = torch.empty_like(values)
    for i in range(len(values)):
        new = values[i] if levels is None else levels.round(i, values[i])
        result[i] = new
        passed = (values[i] if reference is None else reference[i]) - new
        values[i + 1 :].addr_(coupling[i, i + 1 :], passed)
    return result


@cache
def has_triton() -> bool:
    return find_spec("triton") is not None
