"""columns.py's loop as one Triton kernel: each program has some rows of the layer, and all n columns.

The program keeps its [rows, n] values in registers; n is at most 128 (feedback.BLOCK_SIZE). Arithmetic
is float32, operation by operation that of columns.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qeval.quant.laboratory.solvers.levels import Levels

ROWS = 32  # of the layer, a program
WARPS = 2
_TIES = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding and subtracting it rounds half to even


def round_on_cuda(
    values: Tensor, coupling: Tensor, levels: Levels | None, reference: Tensor | None
) -> Tensor:
    n, out = values.shape
    result = torch.empty_like(values)
    scale = values if levels is None else levels.scale
    assert values.is_contiguous() and scale.is_contiguous()
    assert reference is None or reference.is_contiguous()
    coupling = coupling.contiguous()  # a factor's rows may lie apart: CUDA's are column by column
    limit = None if levels is None else levels.limit
    _kernel[(triton.cdiv(out, ROWS),)](
        values,
        result,
        values if reference is None else reference,
        coupling,
        scale,
        values if levels is None else levels.zero_point,
        0 if len(scale) == 1 else out,
        values if limit is None else limit,
        n,
        out,
        0.0 if levels is None else float(levels.low),
        0.0 if levels is None else float(levels.high),
        COLUMNS=max(16, triton.next_power_of_2(n)),
        ROWS=ROWS,
        ROUND=levels is not None,
        REFERENCE=reference is not None,
        LIMIT=limit is not None,
        num_warps=WARPS,
        enable_fp_fusion=False,  # as in torch's loop; a fused error would be another error
    )
    return result


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    values,
    result,
    reference,
    coupling,
    scale,
    zero_point,
    scale_stride,
    limit,
    n,
    out,
    low,
    high,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    ROUND: tl.constexpr,
    REFERENCE: tl.constexpr,
    LIMIT: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = row < out
    column = tl.arange(0, COLUMNS)
    places = column[None, :] * out + row[:, None]
    inside = here[:, None] & (column < n)[None, :]
    v = tl.load(values + places, mask=inside, other=0.0)
    for i in range(n):
        now = tl.sum(tl.where((column == i)[None, :], v, 0.0), axis=1)
        new = now
        if ROUND:
            s = tl.load(scale + i * scale_stride + row, mask=here, other=1.0)
            z = tl.load(zero_point + i * scale_stride + row, mask=here, other=0.0)
            level = tl.minimum(tl.maximum(tl.div_rn(now, s) + z, low), high)
            new = ((level + _TIES) - _TIES - z) * s
            if LIMIT:
                error = now - new
                kept = error * error > tl.load(limit + i)
                new = tl.where(kept, now.to(tl.float16).to(tl.float32), new)
        tl.store(result + i * out + row, new, mask=here)
        was = now
        if REFERENCE:
            was = tl.load(reference + i * out + row, mask=here, other=0.0)
        behind = tl.load(coupling + i * n + column, mask=(column > i) & (column < n), other=0.0)
        v += behind[None, :] * (was - new)[:, None]
    tl.store(values + places, v, mask=inside)
