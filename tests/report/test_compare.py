"""Paired differences: laws, agreement with scipy, and coverage of the intervals by simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qeval.core.record import Metric, completed
from qeval.report import compare


def made(*args, **kwargs) -> Metric:
    """As it is read from a record."""
    return completed(Metric(*args, **kwargs))


finite = st.floats(min_value=0, max_value=8, allow_nan=False)
near = st.floats(min_value=3, max_value=3.5, allow_nan=False)


def ppl(values) -> Metric:
    value = math.exp(math.fsum(values) / len(values)) if values else 20.0
    return made("ppl", value, "p", values=tuple(values), n=len(values))


def passes(values) -> Metric:
    units = tuple(str(i) for i in range(len(values)))
    return made("pass@1", sum(values) / len(values), "p", values=tuple(values), units=units)


@given(st.lists(finite, min_size=2, max_size=20))
def test_a_row_against_itself_is_no_difference(values):
    for metric in (ppl(values), passes(values)):
        same = compare.difference(metric, metric)
        assert (same.value, same.low, same.high, same.significant) == (0, 0, 0, False)


@given(st.lists(st.tuples(near, near), min_size=2, max_size=20))
def test_swapping_the_rows_mirrors_the_difference(pairs):
    ours, base = zip(*pairs, strict=True)
    there, back = (compare.difference(ppl(a), ppl(b)) for a, b in ((ours, base), (base, ours)))
    for x, y in ((there.value, back.value), (there.low, back.high), (there.high, back.low)):
        assert math.log1p(x) == pytest.approx(-math.log1p(y), abs=1e-6)
    assert there.significant == back.significant
    there, back = (compare.difference(passes(a), passes(b)) for a, b in ((ours, base), (base, ours)))
    assert there.value == pytest.approx(-back.value)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert there.p == back.p


def test_relative_change_is_the_ratio_of_the_perplexities():
    base, ours = [3.0, 3.5, 2.5], [3.1, 3.4, 2.9]
    change = compare.difference(ppl(ours), ppl(base))
    assert change.kind == "relative"
    assert 1 + change.value == pytest.approx(ppl(ours).value / ppl(base).value)


def test_a_small_but_consistent_shift_is_significant_although_the_windows_differ_widely():
    rng = np.random.default_rng(0)
    base = rng.normal(3, 0.5, 148)
    ours = base + 0.005 + rng.normal(0, 0.01, 148)
    change = compare.difference(ppl(list(ours)), ppl(list(base)))
    assert change.significant
    assert 0.001 < change.low < change.value < change.high < 0.009


@given(st.integers(0, 40), st.integers(0, 40))
@settings(deadline=None)  # scipy is imported in the first
def test_mcnemar_equals_the_binomial_test(gained, lost):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert compare.mcnemar_p(gained, lost) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=2, max_size=12))
def test_one_sample_a_problem_is_mcnemar(d):
    assert compare.sign_flip_p(d) == compare.mcnemar_p(d.count(1.0), d.count(-1.0))


@given(st.lists(st.sampled_from([-0.35, -0.1, 0.0, 0.05, 0.2]), min_size=2, max_size=8))
def test_sign_flips_equal_the_enumeration_by_hand(d):
    sums = [
        abs(sum(s * x for s, x in zip(signs, d, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(d))
    ]
    expected = sum(s >= abs(sum(d)) - 1e-9 for s in sums) / len(sums)
    assert compare.sign_flip_p(d) == pytest.approx(expected)


def test_random_sign_flips_come_near_the_exact_p(monkeypatch):
    d = list(np.random.default_rng(3).normal(0.5, 1, 12))
    exact = compare.sign_flip_p(d)
    monkeypatch.setattr(compare, "EXACT_FLIPS", 0)
    assert compare.sign_flip_p(d) == pytest.approx(exact, abs=0.02)
    assert 0.02 < exact < 0.98


def test_bootstrap_interval_is_that_of_a_plain_bootstrap():
    """Golden: np.quantile over 200,000 resamples of the same numbers, drawn with another seed."""
    rng = np.random.default_rng(5)
    d = rng.choice([-0.5, 0.0, 0.25, 1.0], 60)
    means = d[rng.integers(0, 60, (200_000, 60))].mean(axis=1)
    expected = np.quantile(means, [0.025, 0.975])
    assert compare.bootstrap_interval(list(d)) == pytest.approx(tuple(expected), abs=0.01)
    assert compare.bootstrap_interval(list(d)) == compare.bootstrap_interval(list(d))


def test_the_intervals_cover_the_truth_about_95_times_in_a_hundred():
    rng = np.random.default_rng(7)
    relative = points = false_alarms = 0
    rounds = 400
    for _ in range(rounds):
        base = rng.normal(3, 0.5, 30)
        change = compare.difference(ppl(list(base + rng.normal(0.02, 0.05, 30))), ppl(list(base)))
        relative += change.low <= math.expm1(0.02) <= change.high
        d = rng.binomial(20, 0.4, 100) / 20 - rng.binomial(20, 0.4, 100) / 20
        found = compare.points(list(d))
        points += found.low <= 0 <= found.high
        false_alarms += found.significant
    assert 0.92 < relative / rounds < 0.98  # 5 standard errors of 400 rounds are 0.05
    assert 0.91 < points / rounds < 0.98
    assert false_alarms / rounds < 0.09


def test_many_lost_problems_are_significant_and_a_few_are_not():
    base = [1.0] * 40 + [0.0] * 124
    few, many = list(base), list(base)
    few[:2] = [0.0] * 2
    many[:12] = [0.0] * 12
    lost = compare.difference(passes(many), passes(base))
    assert lost.significant
    assert lost.p == 2 * 0.5**12
    assert lost.value == pytest.approx(-12 / 164)
    assert lost.low < lost.value < lost.high < 0
    assert not compare.difference(passes(few), passes(base)).significant


def test_what_is_not_the_same_units_is_not_compared():
    assert compare.difference(ppl([1.0, 2.0]), ppl([1.0])) == "2 windows here, 1 in the baseline"
    other = made("pass@1", 0.5, "p", values=(1.0, 0.0), units=("a", "c"))
    base = made("pass@1", 0.5, "p", values=(1.0, 0.0), units=("a", "b"))
    assert compare.difference(other, base) == "other problems than the baseline's"
    gap = made("ppl", 2.0, "p", values=(1.0, None))
    assert compare.difference(gap, ppl([1.0, 2.0])) == "windows without a finite result"


def test_a_single_window_gives_a_difference_without_a_test():
    change = compare.difference(ppl([math.log(11)]), ppl([math.log(10)]))
    assert change.value == pytest.approx(0.1)
    assert (change.low, change.high, change.significant) == (None, None, None)


def test_other_numbers_are_ratios_and_broken_ones_have_none():
    fast, slow = (made("decode_tok_s", v, "speed", "tok/s") for v in (30.0, 20.0))
    assert compare.difference(fast, slow) == compare.Difference("ratio", 1.5)
    late, early = (made("ttft_s", v, "speed", "s") for v in (3.0, 2.0))
    assert compare.difference(late, early) == compare.Difference("time", 1.5)
    zero, broken = made("x", 0.0, "p"), made("ppl", None, "p")
    assert compare.difference(fast, zero) is None
    assert compare.difference(broken, ppl([1.0])) is None


@pytest.mark.parametrize(("unit", "whole"), [("share", 1.0), ("%", 100.0)])
def test_shares_of_a_plug_in_are_told_apart_in_points(unit, whole):
    ours, base = ([whole * v for v in values] for values in ([1, 1, 0, 1], [1, 0, 0, 1]))

    def metric(found, kept=()) -> Metric:
        mean = sum(found) / len(found)
        return made("accuracy", mean, "mmlu", unit, values=tuple(kept))

    bare = compare.difference(metric(ours), metric(base))
    assert bare == compare.Difference("points", pytest.approx(0.25))
    paired = compare.difference(metric(ours, ours), metric(base, base))
    assert (paired.kind, paired.value, paired.p) == ("points", pytest.approx(0.25), 1.0)
    assert paired.low <= 0 <= paired.high and paired.significant is False


def test_a_blown_up_perplexity_stays_finite():
    change = compare.difference(ppl([600.0, 700.0]), ppl([1.0, 1.0]))
    assert math.isfinite(change.high)


def kld(values, base=False) -> Metric:
    mean = sum(values) / len(values)
    return made(
        "kld",
        mean,
        "kl/x",
        "nats",
        values=tuple(values),
        better="lower",
        pairs="window",
        change="difference",
        from_baseline=True,
    )


def test_two_divergences_are_told_apart_window_by_window():
    """Of windows that are hard for both, where each alone has a wide interval."""
    rng = np.random.default_rng(0)
    hard = rng.gamma(2, 0.05, 60)
    a, b = hard, 1.1 * hard + rng.normal(0, 0.002, 60)
    change = compare.difference(kld(list(b)), kld(list(a)))
    assert change.kind == "difference" and change.value == pytest.approx(b.mean() - a.mean())
    assert 0 < change.low < change.value < change.high and change.significant
    assert compare.difference(kld([0.2]), kld([0.1])) == compare.Difference("difference", 0.1)


@pytest.mark.parametrize(
    ("n", "gained", "lost"), [(20, 0.05, 0.1), (50, 0.05, 0.05), (164, 0.02, 0.06)]
)
def test_intervals_of_greedy_problems_cover_at_least_94_in_a_hundred(n, gained, lost):
    rng, inside, rounds = np.random.default_rng(n), 0, 3000
    for up, down, _ in rng.multinomial(n, [gained, lost, 1 - gained - lost], rounds):
        low, high = compare.changed_interval(int(up), int(down), n)
        inside += low <= gained - lost <= high
    assert inside / rounds > 0.935  # 94% less 1.2 standard errors


@pytest.mark.parametrize("n", [5, 20, 164])
def test_intervals_of_sampled_problems_cover(n):
    rng, inside, rounds = np.random.default_rng(n), 0, 600
    for _ in range(rounds):
        rate = rng.beta(0.3, 0.5, n)
        d = (rng.binomial(20, rate) - rng.binomial(20, rate)) / 20
        change = compare.points(list(d))
        inside += change.low <= 0 <= change.high
    assert inside / rounds > 0.92


def test_three_verdicts():
    rng = np.random.default_rng(1)
    base = rng.normal(3, 0.5, 148)
    near = compare.difference(ppl(list(base + rng.normal(0.001, 0.005, 148))), ppl(list(base)))
    far = compare.difference(ppl(list(base + rng.normal(0.05, 0.05, 148))), ppl(list(base)))
    unknown = compare.difference(ppl(list(base[:5] + rng.normal(0, 0.1, 5))), ppl(list(base[:5])))
    assert near.equivalent
    assert far.significant and not far.equivalent
    assert not unknown.significant and not unknown.equivalent
    wide = compare.Margins(relative=0.5)
    assert compare.difference(ppl(list(base + 0.05)), ppl(list(base)), wide).equivalent


def test_holm_is_harder_on_many_rows():
    change = compare.Difference("points", 0.1, 0.01, 0.2, p=0.03, significant=True)
    [alone] = compare.corrected([change])
    assert alone.significant and alone.adjusted == 0.03
    together = compare.corrected([change, change, compare.Difference("ratio", 2.0)])
    assert [d.significant for d in together] == [False, False, None]
    assert together[0].adjusted == pytest.approx(0.06) and together[0].p == 0.03
