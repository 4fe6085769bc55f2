"""Laws of the affine grid: on the grid, within half a step, packed and unpacked alike."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from qeval.core.errors import BuildError
from qeval.formats import affine

BITS = st.integers(2, 8)


@st.composite
def weights(draw):
    rows, groups, size = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    w = torch.randn(rows, groups * size, generator=generator) * draw(st.sampled_from([1e-3, 1.0, 50.0]))
    return w, size


@settings(max_examples=60, deadline=None)
@given(weights(), BITS, st.booleans())
def test_the_result_lies_on_its_grid_and_within_half_a_step(case, num_bits, symmetric):
    w, size = case
    grid = affine.fit_grid(w, num_bits, size, symmetric)
    levels = affine.quantize(w, grid)
    assert torch.equal(levels, levels.round())
    assert levels.min() >= grid.low
    assert levels.max() <= grid.high
    rounded = affine.dequantize(levels, grid)
    step = grid.scale.repeat_interleave(size, dim=1)
    # Half a step inside the range; the float16 scale and the rounded zero point cost up to another
    # step at its ends.
    assert ((rounded - w).abs() <= step * (1.0 + 2**num_bits * 2.0**-11)).all()
    for group in rounded.reshape(w.shape[0], -1, size).flatten(0, 1):
        assert len(group.unique()) <= 2**num_bits


@settings(max_examples=60, deadline=None)
@given(weights(), BITS, st.booleans())
def test_what_is_on_the_grid_stays(case, num_bits, symmetric):
    w, size = case
    grid = affine.fit_grid(w, num_bits, size, symmetric)
    once = affine.dequantize(affine.quantize(w, grid), grid)
    assert torch.equal(affine.dequantize(affine.quantize(once, grid), grid), once)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 6), st.integers(1, 40), BITS, st.booleans(), st.integers(0, 1000))
def test_unpack_inverts_pack_on_odd_shapes(rows, n, num_bits, signed, seed):
    low = -(2 ** (num_bits - 1)) if signed else 0
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(low, low + 2**num_bits, (rows, n), generator=generator)
    packed = affine.pack(levels, num_bits, low)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, -(-n * num_bits // 8))
    assert torch.equal(affine.unpack(packed, num_bits, n, low), levels)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("shape", "group_size"), [((7, 12), 4), ((3, 10), -1), ((5, 9), 3)])
@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
def test_the_accounted_bytes_are_those_of_the_packed_tensors(shape, group_size, num_bits, symmetric):
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    grid = affine.fit_grid(w, num_bits, group_size, symmetric)
    stored = [
        affine.pack(affine.quantize(w, grid), num_bits, grid.low),
        grid.scale.half(),
        *([] if symmetric else [affine.pack(grid.zero_point, num_bits)]),
    ]
    assert torch.equal(stored[1].float(), grid.scale)  # nothing is lost by storing it in 16 bits
    assert affine.stored_bytes(shape, num_bits, group_size, symmetric) == sum(t.nbytes for t in stored)


def test_a_row_of_zeros_and_a_constant_row():
    w = torch.tensor([[0.0, 0.0, 0.0, 0.0], [3.0, 3.0, 3.0, 3.0]])
    for symmetric in (True, False):
        out = affine.fake_quantize(w, 4, -1, symmetric)
        half_a_step = 3.0 / 15 if symmetric else 0.0  # the largest positive weight lies between levels
        assert torch.equal(out[0], w[0])
        assert ((out[1] - w[1]).abs() <= half_a_step + 3e-3).all()


def test_more_bits_err_less():
    w = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    errors = [(affine.fake_quantize(w, b, 16, False) - w).square().mean().item() for b in range(2, 9)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 100 * errors[-1]


def test_a_group_size_that_does_not_divide_names_layer_and_fix():
    with pytest.raises(BuildError) as caught:
        affine.check_group_size({"a": 64, "b": 172, "c": 172}, 64)
    text = str(caught.value)
    assert "group_size 64 does not divide in_features 172 of b (and of 1 more layers)" in text
    assert text.endswith("use -1 (per channel)")
    affine.check_group_size({"a": 64, "b": 172}, 4)
    affine.check_group_size({"a": 7}, -1)
