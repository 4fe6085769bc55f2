"""A right layer passes, a wrong one does not, and whatever else goes wrong is one line."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qeval.doctor.probe import BOUNDS, GROUP, OUT, TOKENS, problem, tried
from qeval.formats.affine import Grid, dequantize, fit_grid, quantize


class Product:
    """Inputs times some weights [OUT, IN]."""

    def __init__(self, weight):
        exact, self.inputs = problem()
        self.weight, self.wanted = weight, self.inputs @ exact.T

    def run(self):
        return self.inputs @ self.weight.T

    def kernel(self):
        return "numpy"


def quantized(num_bits, group_size, change=lambda grid: grid):
    import torch

    weight = torch.from_numpy(problem()[0])
    grid = fit_grid(weight, num_bits, group_size, symmetric=False)
    return dequantize(quantize(weight, grid), change(grid)).numpy()


@pytest.mark.parametrize(("num_bits", "group_size"), [(4, GROUP), (8, -1)])
def test_a_right_layer_passes_with_room(num_bits, group_size):
    found = tried("x", num_bits, lambda: Product(quantized(num_bits, group_size)))
    assert (found.error, found.kernel) == ("", "numpy")
    assert 0 < found.deviation < 0.6 * BOUNDS[num_bits]
    assert found.ms > 0


def wrong_zero(grid: Grid) -> Grid:
    return replace(grid, zero_point=grid.zero_point + 1)


def next_group(grid: Grid) -> Grid:
    return replace(grid, scale=grid.scale.roll(1, 1))


def next_row(grid: Grid) -> Grid:
    return replace(grid, scale=grid.scale.roll(1, 0))


def lost_group(grid: Grid) -> Grid:
    scale = grid.scale.clone()
    scale[:, 0] = 0
    return replace(grid, scale=scale)


@pytest.mark.parametrize(
    ("num_bits", "group_size", "change"),
    [
        (4, GROUP, wrong_zero),
        (4, GROUP, next_group),
        (4, GROUP, next_row),
        (4, GROUP, lost_group),
        (8, -1, next_row),
    ],
)
def test_a_wrong_layer_misses_the_bound_by_far(num_bits, group_size, change):
    weight = quantized(num_bits, group_size, change)
    found = tried("x", num_bits, lambda: Product(weight))
    assert found.deviation > 1.6 * BOUNDS[num_bits]
    assert found.error == (
        f"its product is off by {found.deviation:.1%}; a right one by {BOUNDS[num_bits]:.0%} at most"
    )


def test_a_product_that_is_not_finite_is_wrong():
    weight = quantized(4, GROUP)
    weight[0, 0] = np.nan
    found = tried("x", 4, lambda: Product(weight))
    assert found.error.startswith("its product is off by nan%")
    assert found.deviation is None


def test_a_product_of_another_shape_is_wrong():
    found = tried("x", 4, lambda: Product(quantized(4, GROUP)[:1]))
    assert (
        found.error == f"ValueError: its product has the shape ({TOKENS}, 1), not ({TOKENS}, {OUT})"
    )  # which numpy would broadcast


def test_an_exception_is_its_first_line():
    def make():
        raise RuntimeError("no kernel image\nCUDA kernel errors might be reported elsewhere")

    found = tried("x", 4, make)
    assert (found.error, found.ms, found.kernel) == ("RuntimeError: no kernel image", None, "")
