"""The levels onto which a run of columns is rounded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qeval.quant.laboratory.solvers.base import snap


@dataclass(frozen=True)
class Levels:
    """Onto what a run of n columns is rounded."""

    scale: Tensor  # [n, out], or [1, out] for all of them
    zero_point: Tensor  # likewise
    low: int
    high: int
    limit: Tensor | None = None  # [n]: weights whose squared error exceeds it stay, as float16

    def round(self, index: int, column: Tensor) -> Tensor:
        """Column ``index`` of the run, [out]."""
        row = index if len(self.scale) > 1 else 0
        rounded = snap(column, self.scale[row], self.zero_point[row], self.low, self.high)
        if self.limit is None:
            return rounded
        kept = (column - rounded).square() > self.limit[index]
        return torch.where(kept, column.half().float(), rounded)
