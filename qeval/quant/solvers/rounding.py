"""Onto which grid the columns of a layer are rounded, one column after the other.

Columns come in the order of processing, and as rows of W^T: [out] values that lie together in memory.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from qeval.quant.affine import Grid, fit_grid
from qeval.quant.solvers.base import GridRules, snap


class Rounder(Protocol):
    """Rounds columns in the order that error feedback comes to them."""

    def start_group(self, first: int, columns: Tensor) -> None:
        """Called where a group begins, with its columns [group, out] as they are by then."""
        ...

    def round(self, index: int, column: Tensor) -> Tensor:
        """What column ``index`` [out] becomes; what is lost goes on to the columns behind it."""
        ...


class FittedGroups:
    """A grid for each group, found where the group begins from the weights as updated by then."""

    def __init__(self, rules: GridRules) -> None:
        self._rules = rules
        self._grids: list[Grid] = []

    def start_group(self, first: int, columns: Tensor) -> None:
        self._grids.append(fit_grid(columns.T, self._rules.num_bits, -1, self._rules.symmetric))

    def round(self, index: int, column: Tensor) -> Tensor:
        grid = self._grids[-1]
        return snap(column, grid.scale[:, 0], grid.zero_point[:, 0], grid.low, grid.high)

    def grid(self) -> Grid:
        """All groups' grids side by side, [out, n_groups]."""
        return join(self._grids)


class FixedGrid:
    """A grid that was there before, whatever the order of the columns."""

    def __init__(self, grid: Grid, group_of: Tensor) -> None:
        """``group_of`` [in]: the group of each column, in the order of processing."""
        self._low, self._high = grid.low, grid.high
        self._scale = grid.scale.T.contiguous()  # [n_groups, out]
        self._zero_point = grid.zero_point.T.contiguous()
        self._group_of = group_of.tolist()

    def start_group(self, first: int, columns: Tensor) -> None:
        return

    def round(self, index: int, column: Tensor) -> Tensor:
        group = self._group_of[index]
        return snap(column, self._scale[group], self._zero_point[group], self._low, self._high)


def join(grids: list[Grid]) -> Grid:
    """Grids of one group each, [out, 1], as one grid [out, n_groups]."""
    return Grid(
        torch.cat([g.scale for g in grids], dim=1),
        torch.cat([g.zero_point for g in grids], dim=1),
        grids[0].low,
        grids[0].high,
    )
