"""Moments against scipy and numpy, and that they do not depend on how the stream was cut."""

import math
from functools import reduce
from itertools import pairwise
from operator import add

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kurtosis

from qeval.tensor_stats import moments as module
from qeval.tensor_stats.moments import Channels, Moments, Noise, moments


def tensor(shape, scale=1.0, shift=0.0, seed=0, dtype=torch.float32):
    """Normal values, some of them ten times as large."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=g, dtype=torch.float64)
    x = torch.where(torch.rand(shape, generator=g) < 0.02, 10 * x, x)
    return (scale * x + shift).to(dtype)


def check(found: Moments, x: torch.Tensor):
    """numpy and scipy in extended precision: in float64 they lose more than ours far from zero."""
    wide = x.to(torch.float64).numpy().ravel().astype(np.longdouble)
    assert found.n == wide.size and found.nonfinite == 0
    assert found.absmax == np.abs(wide).max()
    assert found.mean == pytest.approx(float(wide.mean()), rel=1e-12, abs=1e-13 * found.absmax)
    assert found.std == pytest.approx(float(wide.std()), rel=1e-9)
    assert found.kurtosis == pytest.approx(float(kurtosis(wide, fisher=False)), rel=1e-8)


@pytest.mark.parametrize("shape", [(7,), (2,), (3, 5), (1, 1, 129), (64, 48), (2, 3, 5, 7)])
@pytest.mark.parametrize(
    ("scale", "shift"), [(1, 0), (1e-38, 0), (1e36, 0), (1, 3e4), (1e-20, -1e-18), (1e30, 1e31)]
)
def test_they_are_scipys_whatever_the_shape_and_scale(shape, scale, shift):
    x = tensor(shape, scale, shift)
    check(moments(x), x)


def test_of_half_precision_and_of_a_tensor_that_is_not_contiguous():
    for dtype in (torch.bfloat16, torch.float16):
        x = tensor((40, 30), dtype=dtype)
        check(moments(x), x)
        check(moments(x.T[::2]), x.T[::2])


def test_known_distributions():
    uniform = torch.linspace(-1, 1, 100_001, dtype=torch.float64)
    assert moments(uniform).kurtosis == pytest.approx(1.8, rel=1e-4)
    normal = torch.randn(10**6, generator=torch.Generator().manual_seed(0))
    assert moments(normal).kurtosis == pytest.approx(3, abs=0.02)
    assert moments(torch.tensor([-1.0, 1.0])).kurtosis == 1
    assert moments(torch.tensor([1.0, 2.0, 3.0, 4.0])).std == pytest.approx(math.sqrt(1.25))


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(2, 400),
    cuts=st.lists(st.integers(0, 400), max_size=6),
    scale=st.sampled_from([1e-30, 1.0, 1e20]),
    shift=st.sampled_from([0.0, 100.0]),
    seed=st.integers(0, 99),
)
def test_they_do_not_depend_on_the_cuts(n, cuts, scale, shift, seed):
    x = tensor((n,), scale, shift * scale, seed)
    places = sorted({min(c, n) for c in cuts} | {0, n})
    parts = [moments(x[a:b]) for a, b in pairwise(places)]
    whole = moments(x)
    for order in (parts, parts[::-1]):
        cut = reduce(add, order, Moments())
        assert (cut.n, cut.absmax) == (whole.n, whole.absmax)
        assert cut.mean == pytest.approx(whole.mean, rel=1e-12, abs=1e-13 * whole.absmax)
        assert cut.std == pytest.approx(whole.std, rel=1e-9)
        assert cut.kurtosis == pytest.approx(whole.kurtosis, rel=1e-8)
        assert cut.m3 == pytest.approx(whole.m3, rel=1e-7, abs=1e-9 * n * whole.std**3)


def test_a_tensor_larger_than_a_piece_is_summed_in_pieces(monkeypatch):
    x = tensor((1000,), shift=5)
    whole = moments(x)
    monkeypatch.setitem(module.PIECE, "cpu", 7)
    check(moments(x), x)
    assert moments(x) != whole  # to the last bit: it was cut


def test_equal_values_have_no_kurtosis():
    for value in (0.0, 0.1, 1e30, 1e-40):
        found = moments(torch.full((1000,), value))
        assert found.kurtosis is None
        assert found.std == pytest.approx(0, abs=1e-14 * abs(value))
    assert (moments(torch.tensor([5.0])) + moments(torch.tensor([5.0]))).kurtosis is None
    one_ulp = torch.full((100_000,), 1.0)
    one_ulp[7] = 1 + 2**-23
    assert moments(one_ulp).kurtosis == pytest.approx(100_000, rel=1e-3)


def test_what_is_not_finite_is_counted_and_left_out():
    x = tensor((100,))
    y = x.clone()
    y[[3, 50, 98]] = torch.tensor([math.nan, math.inf, -math.inf])
    found = moments(y)
    assert (found.n, found.nonfinite) == (97, 3)
    rest = moments(x[[i for i in range(100) if i not in (3, 50, 98)]])
    assert found.std == pytest.approx(rest.std) and found.kurtosis == pytest.approx(rest.kurtosis)
    nothing = moments(torch.full((4,), math.nan))
    assert (nothing.n, nothing.nonfinite, nothing.std, nothing.kurtosis) == (0, 4, None, None)
    assert (nothing + found).nonfinite == 7 and (nothing + found).n == 97


def test_channels_keep_the_largest_of_every_column():
    channels, x = Channels(), tensor((50, 6))
    for part in (x[:1], x[1:20], x[20:]):
        channels.add(part)
    assert torch.equal(channels.absmax, x.abs().amax(0))


def test_noise_is_the_mean_share_of_the_channels_in_db():
    noise, x = Noise(), tensor((64, 32))
    for part in (x[:10], x[10:]):
        noise.add(part, part * 0.9)
    assert noise.db == pytest.approx(20, abs=1e-4)  # a tenth of the amplitude
    exact = Noise()
    exact.add(x, x)
    assert exact.db is None and Noise().db is None
    mixed, y = Noise(), torch.tensor([[100.0, 1.0, 0.0], [-100.0, 1.0, 0.0]])
    mixed.add(y, torch.tensor([[100.0, 0.0, 0.0], [-100.0, 0.0, 0.0]]))
    assert mixed.db == pytest.approx(10 * math.log10(2))  # of two channels one is lost; zeros are none
