"""What a solver returns, how it is judged, and what storing it costs.

Loss of a layer, the one number that every solver is compared by (METHODS: ||WX - QX||_F^2):
    loss(W, Q, H) = tr((W - Q) H (W - Q)^T), W and Q [out, in], H = X X^T [in, in].

Outliers are stored as SpQR stores them (arXiv 2306.03078, section 4.3): rows one after the other, each
outlier a 16-bit value and its 16-bit column (32-bit from 65,536 inputs on), and a 32-bit pointer to
where each row begins. Whole columns need one 32-bit index each. The dense levels stay at full size: an
outlier's level is stored, too, and means nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qeval.core.errors import BuildError
from qeval.formats.affine import Grid, stored_bytes

VALUE_BYTES = 2  # float16
POINTER_BYTES = 4


@dataclass(frozen=True)
class GridRules:
    """Which levels a weight may take: the options that every method of affine grids shares."""

    num_bits: int
    group_size: int = -1  # consecutive inputs that share a scale; -1: one scale per output channel
    symmetric: bool = False

    def width(self, in_features: int) -> int:
        """Inputs of one group.

        Raises:
            BuildError: the group size does not divide the inputs.
        """
        if self.group_size == -1:
            return in_features
        if in_features % self.group_size:
            raise BuildError(f"group_size {self.group_size} does not divide {in_features} inputs")
        return self.group_size

    def dense_bytes(self, shape: tuple[int, int]) -> int:
        """Bytes of a layer [out, in] on such a grid: levels, zero points, 16-bit scales."""
        return stored_bytes(shape, self.num_bits, self.group_size, self.symmetric)


@dataclass(frozen=True)
class Facts:
    """What a solver did, for the layer report."""

    loss: float  # tr((W-Q) H (W-Q)^T), in the Hessian's own scale
    relative_loss: float  # over tr(W H W^T); 0 where that is 0
    damping: float | None = (
        None  # used, as a share of the mean diagonal of H; None: the method has none
    )
    damping_asked: float | None = None
    dead_columns: int = 0  # inputs that were never anything but 0
    outlier_share: float = 0.0
    clipped_share: float = 0.0  # of the rows' groups: their range is cut
    sweeps: int = 0  # that led to this result


@dataclass(frozen=True)
class Solution:
    """A quantized linear layer, as floats, and the grid that it lies on."""

    weight: Tensor  # [out, in] float32: de-quantized, outliers in their places
    grid: Grid  # scale and zero point [out, n_groups]; SpQR's zero points are not whole numbers
    group_of: Tensor  # [in] int64: the group of each column (GPTQ's g_idx)
    outliers: Tensor | None  # [out, in] bool: kept as float16, off the grid; None: there can be none
    stored_bytes: int
    facts: Facts


def loss(weight: Tensor, quantized: Tensor, hessian: Tensor) -> float:
    """tr((W-Q) H (W-Q)^T) of W, Q [out, in] and H [in, in]; summed in float64."""
    error = (weight - quantized).to(hessian.dtype)
    return float(((error @ hessian) * error).sum(dtype=torch.float64))


def snap(weight: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """The nearest levels as weights; element by element the same arithmetic as affine.py's."""
    levels = (weight / scale + zero_point).round_().clamp_(low, high)
    return levels.sub_(zero_point).mul_(scale)


def snap_to(weight: Tensor, grid: Grid, group_of: Tensor) -> Tensor:
    """``weight`` [out, in] rounded to a grid whose groups are any columns."""
    return snap(weight, grid.scale[:, group_of], grid.zero_point[:, group_of], grid.low, grid.high)


def off_grid(solution: Solution) -> int:
    """How many weights that are not outliers are off their grid. 0, or the solver is wrong."""
    off = snap_to(solution.weight, solution.grid, solution.group_of) != solution.weight
    return int((off & ~solution.outliers).sum() if solution.outliers is not None else off.sum())


def consecutive(in_features: int, width: int, device: torch.device) -> Tensor:
    """[in]: columns 0 .. width-1 are group 0, and so on."""
    return torch.arange(in_features, device=device) // width


def index_bytes(group_of: Tensor, width: int) -> int:
    """What it costs to say which group a column is in: 32 bits each, unless groups lie in order."""
    ordered = torch.equal(group_of, consecutive(len(group_of), width, group_of.device))
    return 0 if ordered else POINTER_BYTES * len(group_of)


def sparse_bytes(shape: tuple[int, int], n_outliers: int) -> int:
    """Bytes of scattered outliers: value and column of each, a pointer for each row and the end."""
    rows, columns = shape
    index = 2 if columns < 2**16 else 4
    return n_outliers * (VALUE_BYTES + index) + POINTER_BYTES * (rows + 1)


def column_bytes(shape: tuple[int, int], n_columns: int) -> int:
    """Bytes of whole columns of outliers: their values and one index each."""
    return n_columns * (shape[0] * VALUE_BYTES + POINTER_BYTES)


def facts(
    weight: Tensor,
    quantized: Tensor,
    hessian: Tensor,
    *,
    damping: tuple[float, float] | None = None,  # asked, used
    outliers: Tensor | None = None,
    sweeps: int = 0,
) -> Facts:
    """The facts of a finished solution; ``weight`` is the layer as it was."""
    whole = loss(weight, torch.zeros_like(weight), hessian)
    lost = loss(weight, quantized, hessian)
    return Facts(
        loss=lost,
        relative_loss=lost / whole if whole > 0 else 0.0,
        damping=damping[1] if damping else None,
        damping_asked=damping[0] if damping else None,
        dead_columns=int((hessian.diagonal() == 0).sum()),
        outlier_share=float(outliers.float().mean()) if outliers is not None else 0.0,
        sweeps=sweeps,
    )
