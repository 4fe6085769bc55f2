"""Verdicts, checked by simulation."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from qeval.stats.series import Mean, mean_of_strangers
from qeval.stats.verdicts import equivalent, holm


def test_equivalent_is_two_one_sided_tests():
    rng = np.random.default_rng(0)
    for _ in range(50):
        d = rng.standard_normal(12) * 0.5
        lower = stats.ttest_1samp(d, -0.4, alternative="greater").pvalue
        upper = stats.ttest_1samp(d, 0.4, alternative="less").pvalue
        assert equivalent(mean_of_strangers(d), 0.4) == (max(lower, upper) < 0.05)


def test_what_is_at_the_margin_is_called_equivalent_once_in_twenty_times():
    rng = np.random.default_rng(1)
    called = sum(equivalent(mean_of_strangers(rng.standard_normal(40) + 0.5), 0.5) for _ in range(2000))
    assert 0.035 <= called / 2000 <= 0.065


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_is_the_step_down_procedure(p):
    """Reject the smallest while p_(i) <= alpha / (m - i)."""
    rejected, order = set(), sorted(range(len(p)), key=lambda i: p[i])
    for rank, i in enumerate(order):
        if p[i] > 0.05 / (len(p) - rank):
            break
        rejected.add(i)
    assert {i for i, x in enumerate(holm(p)) if x <= 0.05 * (1 + 1e-12)} >= rejected
    assert all(a >= b for a, b in zip(holm(p), p, strict=True))
    assert {i for i, x in enumerate(holm(p)) if x < 0.05 * (1 - 1e-12)} <= rejected


def test_one_false_alarm_among_many_rows_stays_rare():
    rng = np.random.default_rng(2)
    alarms = sum(min(holm(list(rng.uniform(size=20)))) < 0.05 for _ in range(2000))
    assert alarms / 2000 <= 0.065


def test_a_mean_without_error_is_equivalent_to_itself():
    assert equivalent(Mean(0.0, 0.0, 3, 4), 1e-9) and not equivalent(Mean(1.0, 0.0, 3, 4), 1.0)
