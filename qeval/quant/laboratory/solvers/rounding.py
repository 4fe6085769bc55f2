"""Onto which grid the columns of a layer are rounded, one run of columns after the other.

Columns come in the order of processing, and as rows of W^T: [out] values that lie together in memory.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from qeval.formats.affine import Grid, fit_grid
from qeval.quant.laboratory.solvers.base import GridRules
from qeval.quant.laboratory.solvers.levels import Levels


class Rounder(Protocol):
    """Says what columns are rounded to, in the order that error feedback comes to them."""

    def start_group(self, first: int, columns: Tensor) -> None:
        """Called where a group begins, with its columns [group, out] as they are by then."""
        ...

    def levels(self, first: int, last: int) -> Levels:
        """Of columns ``first`` .. ``last``, which are all in the group that began last."""
        ...


class FittedGroups:
    """A grid for each group, found where the group begins from the weights as updated by then."""

    def __init__(self, rules: GridRules) -> None:
        self._rules = rules
        self._grids: list[Grid] = []

    def start_group(self, first: int, columns: Tensor) -> None:
        self._grids.append(fit_grid(columns.T, self._rules.num_bits, -1, self._rules.symmetric))

    def levels(self, first: int, last: int) -> Levels:
        return levels_of(self._grids[-1])

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
        self._group_of = group_of

    def start_group(self, first: int, columns: Tensor) -> None:
        return

    def levels(self, first: int, last: int) -> Levels:
        groups = self._group_of[first:last]
        return Levels(self._scale[groups], self._zero_point[groups], self._low, self._high)


def levels_of(grid: Grid, limit: Tensor | None = None) -> Levels:
    """A grid of one group, [out, 1], for any number of its columns."""
    scale, zero_point = (x.T.contiguous() for x in (grid.scale, grid.zero_point))
    return Levels(scale, zero_point, grid.low, grid.high, limit)


def join(grids: list[Grid]) -> Grid:
    """Grids of one group each, [out, 1], as one grid [out, n_groups]."""
    return Grid(
        torch.cat([g.scale for g in grids], dim=1),
        torch.cat([g.zero_point for g in grids], dim=1),
        grids[0].low,
        grids[0].high,
    )
