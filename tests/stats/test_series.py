"""Means of correlated series: laws, and coverage by simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qeval.stats.series import correlation_time, mean_in_order, mean_of_strangers


def autoregressive(rng: np.random.Generator, n: int, rho: float) -> np.ndarray:
    noise = rng.standard_normal(n + 200)
    x = np.empty(n + 200)
    x[0] = noise[0]
    for i in range(1, len(x)):
        x[i] = rho * x[i - 1] + noise[i]
    return x[200:]


def coverage(draw, n: int, mean=mean_in_order, runs: int = 2000) -> float:
    rng, inside = np.random.default_rng(n), 0
    for _ in range(runs):
        low, high = mean(draw(rng, n)).interval()
        inside += low <= 0 <= high
    return inside / runs


# 2,000 runs: the coverage found is within 1.5 points of the true one, all but once in 500 times.


@pytest.mark.parametrize("n", [2, 4, 10, 40, 160])
def test_independent_units_are_covered(n):
    assert 0.935 <= coverage(lambda rng, n: rng.standard_normal(n), n) <= 0.965
    assert 0.935 <= coverage(lambda rng, n: rng.standard_normal(n), n, mean_of_strangers) <= 0.965


@pytest.mark.parametrize("n", [20, 60, 160, 500])
def test_correlated_windows_are_covered(n):
    """Lag 1: 0.4, as consecutive windows of wikitext-2 have it."""
    draw = lambda rng, n: autoregressive(rng, n, 0.4)  # noqa: E731
    assert 0.93 <= coverage(draw, n) <= 0.965
    assert coverage(draw, n, mean_of_strangers) < 0.85  # what it mends


def test_topics_longer_than_a_window_lengthen_the_blocks():
    """A topic that lasts about 14 windows under independent noise: lag 1 is as before, but the variance
    of a mean is twelve times that of strangers."""

    def draw(rng, n):
        topic = autoregressive(rng, n, 0.93) * np.sqrt(0.4 * (1 - 0.93**2))
        return topic + np.sqrt(0.6) * rng.standard_normal(n)

    rng = np.random.default_rng(0)
    assert np.median([mean_in_order(draw(rng, 640)).block for _ in range(50)]) > 40
    assert coverage(draw, 640, runs=600) > 0.9
    assert coverage(draw, 640, mean_of_strangers, runs=600) < 0.5


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40), st.floats(-10, 10))
@settings(max_examples=50)
def test_a_shift_and_a_scale_go_through(values, shift):
    plain, moved = mean_in_order(values), mean_in_order([-2 * v + shift for v in values])
    assert moved.value == pytest.approx(-2 * plain.value + shift, abs=1e-6)
    if plain.stderr > 1e-6:
        assert moved.stderr == pytest.approx(2 * plain.stderr, rel=1e-5)


def test_a_difference_is_the_covariance_form():
    """SE(a - b)^2 = SE(a)^2 + SE(b)^2 - 2 cov, where all three see the same waves."""
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((2, 3, 8))  # so few that all have three waves
    for x, y in zip(a, a + 0.3 * b, strict=True):
        both, apart = mean_in_order(x + y), mean_in_order(x - y)
        cov = (both.stderr**2 - apart.stderr**2) / 4
        form = mean_in_order(x).stderr ** 2 + mean_in_order(y).stderr ** 2 - 2 * cov
        assert apart.stderr**2 == pytest.approx(form)


def test_all_waves_are_the_textbooks_formula():
    for n in (2, 3, 4):
        x = np.random.default_rng(n).standard_normal(n)
        ours, textbook = mean_in_order(x), mean_of_strangers(x)
        assert (ours.df, ours.block) == (n - 1, 1.0)
        assert ours.stderr == pytest.approx(textbook.stderr) == pytest.approx(x.std(ddof=1) / n**0.5)


def test_a_p_value_is_under_a_level_where_its_interval_leaves_the_mean_out():
    mean = mean_in_order(np.random.default_rng(0).standard_normal(30) + 0.3)
    for level in (0.5, 0.9, 0.95, 0.99):
        low, high = mean.interval(level)
        assert (mean.p_value() < 1 - level) == (not low <= 0 <= high)


def test_what_has_no_error_says_so():
    assert mean_in_order([1.0]) is None and mean_of_strangers([]) is None
    equal = mean_in_order([0.5] * 9)
    assert equal.stderr == 0 and equal.p_value() == 0 and equal.p_value(0.5) == 1
    assert correlation_time([2.0, 2.0]) == 1
