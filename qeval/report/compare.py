"""A row against its baseline: the difference of one metric, with its 95% interval where units pair.

One function a kind of comparison, chosen by what the metric says (``Metric.change``; ``Metric.pairs``
says what its units are):

relative   d_i = log_i - log0_i of unit i (of a perplexity: mean NLL of window i); change of the value
           exp(mean d) - 1 with Student's t-interval of the mean, both ends carried through exp(.) - 1.
difference d_i = x_i - x0_i of unit i in the metric's own unit, likewise (nats of a divergence).
points     d_i = share_i - share0_i of unit i (of pass@k: the estimate for problem i): difference of the
           means in points. The p-value is that of a two-sided sign-flip permutation: exact for one
           sample a problem (it is McNemar's exact test then) and for up to 12 units that differ, else
           10,000 fixed random flips. The interval: of units that pass or fail, Wald's with half a unit
           added to each cell of the table (Agresti and Min, Statistics in Medicine 2005), one-sided
           bounds are put together from exact ones (intervals.changed_at_most); of others the
           percentile bootstrap over units (10,000 resamples, fixed seed), below 100 units Student's t,
           whose coverage holds there. Without a test where units do not pair.
ratio      the ratio, without a test; ``time`` is the same, where less is better.

Windows are in the order of a text, and their errors are those of a correlated series
(stats/series.py); problems and items are independent. A difference is significant when its p-value,
after Holm's correction for the number of rows compared with the same baseline, is under 0.05 and its
interval leaves out "no difference". It is equivalent when both one-sided tests say that it is within
the margin. No scipy: the parent process does this while it prints a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from qeval.core.record import SHARE_UNITS, Change, Metric, Record
from qeval.stats.intervals import Z_95, changed_at_most
from qeval.stats.power import detectable, detectable_share
from qeval.stats.series import Mean, mean_in_order, mean_of_strangers
from qeval.stats.verdicts import ALPHA, equivalent, holm

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


RESAMPLES = 10_000
EXACT_FLIPS = 12  # 2^12 sign patterns are enumerated
_FEW = 100  # units, up to which a percentile bootstrap covers too little
_EPS = 1e-5  # float32 sums that are equal on paper


@dataclass(frozen=True)
class Difference:
    """``value`` is a share for "relative" (0.013: 1.3% more) and "points" (-0.037: 3.7 points less), a
    factor for "ratio" (of a speed, a size, whatever else) and "time" (where less is better).
    ``significant`` and ``equivalent`` are None where nothing can be tested. ``adjusted``: the p-value
    after Holm's correction; ``detectable`` the smallest true difference, in the terms of ``value``,
    that so many units would have found with 80% power: infinite where there is none. ``at_least`` and
    ``at_most``: one-sided 95% bounds, which is what ``equivalent`` looks at."""

    kind: Change
    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    significant: bool | None = None
    equivalent: bool | None = None
    detectable: float | None = None
    adjusted: float | None = None
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True)
class Margins:
    """Differences within which a row is called equivalent to its baseline. ``nats``: of a divergence;
    None: never."""

    points: float = 0.01
    relative: float = 0.01
    nats: float | None = None


MARGINS = Margins()


def difference(ours: Metric, base: Metric, margins: Margins = MARGINS) -> Difference | str | None:
    """``ours`` against ``base`` (same name and protocol), the reason why they cannot be compared, or
    None where there is nothing to divide or subtract (a result that is not finite, or zero)."""
    compared = COMPARISONS.get(ours.change or "none")
    if compared is None or ours.value is None or base.value is None:
        return None
    return compared(ours, base, margins)


def relative(ours: Metric, base: Metric, margins: Margins) -> Difference | str | None:
    d = paired(ours, base)
    if isinstance(d, str):
        return d
    mean = None if d is None else _mean(ours, d)
    if mean is None:  # one long window, or none kept: nothing to test with
        return _ratio(ours, base, "relative")
    return _of_mean("relative", mean, math.log1p(margins.relative), _growth)


def _of_mean(
    kind: Change, mean: Mean, margin: float | None, told: Callable[[float], float] = float
) -> Difference:
    """``margin``: in the mean's own terms; None: nothing is equivalent. ``told``: from these to the
    terms of a Difference."""
    low, high = mean.interval()
    at_least, at_most = mean.interval(1 - 2 * ALPHA)
    p = mean.p_value()
    return Difference(
        kind,
        told(mean.value),
        told(low),
        told(high),
        p,
        p < ALPHA,
        None if margin is None else equivalent(mean, margin),
        told(detectable(mean.stderr, mean.df)),
        at_least=told(at_least),
        at_most=told(at_most),
    )


def own_unit(ours: Metric, base: Metric, margins: Margins) -> Difference | str:
    assert ours.value is not None and base.value is not None
    d = paired(ours, base)
    if isinstance(d, str):
        return d
    mean = None if d is None else _mean(ours, d)
    if mean is None:
        return Difference("difference", ours.value - base.value)
    return _of_mean("difference", mean, margins.nats if ours.unit == "nats" else None)


def _mean(metric: Metric, d: Sequence[float]) -> Mean | None:
    return mean_in_order(d) if metric.pairs == "window" else mean_of_strangers(d)


def _growth(log_ratio: float) -> float:
    return math.expm1(min(log_ratio, 700.0))


def _ratio(ours: Metric, base: Metric, kind: Change) -> Difference | None:
    if not ours.value or not base.value or ours.value * base.value < 0:
        return None
    factor = ours.value / base.value
    return Difference(kind, factor - 1 if kind == "relative" else factor)


def share(ours: Metric, base: Metric, margins: Margins) -> Difference | str:
    assert ours.value is not None and base.value is not None
    one = SHARE_UNITS.get(ours.unit, 1.0)
    d = paired(ours, base)
    if d is None:
        return Difference("points", (ours.value - base.value) / one)
    if isinstance(d, str):
        return d
    if len(d) < 2:
        return f"fewer than two {ours.pairs}s with a result"
    if ours.pairs == "window":
        mean = mean_in_order([x / one for x in d])  # neighbours are alike
        assert mean is not None
        return _of_mean("points", mean, margins.points)
    return points([x / one for x in d], margins.points)


def ratio(ours: Metric, base: Metric, _: Margins) -> Difference | None:
    return _ratio(ours, base, "ratio")


def time(ours: Metric, base: Metric, _: Margins) -> Difference | None:
    return _ratio(ours, base, "time")


COMPARISONS: Mapping[Change, Callable[[Metric, Metric, Margins], Difference | str | None]] = {
    "relative": relative,
    "difference": own_unit,
    "points": share,
    "ratio": ratio,
    "time": time,
}


def flips(ours: Metric | None, base: Metric | None) -> list[float] | None:
    """+1, 0 and -1 for each item that passed or failed in both; None for any other metric."""
    if ours is None or base is None or ours.pairs not in ("problem", "item") or ours.change != "points":
        return None
    one = SHARE_UNITS.get(ours.unit, 1.0)
    d = paired(ours, base)
    if d is None or isinstance(d, str) or not all(x / one in (-1.0, 0.0, 1.0) for x in d):
        return None
    return [x / one for x in d]


def other_text(ours: Record, base: Record) -> str | None:
    """Why windows of two records do not pair: they have no names, and are the same where text and
    tokens are."""
    for name, what in (("text_sha256", "text"), ("tokens_sha256", "tokens")):
        if ours.provenance.get(name) != base.provenance.get(name):
            return f"other {what} than the baseline's"
    return None


def paired(ours: Metric, base: Metric) -> list[float] | str | None:
    """ours - base unit by unit; a reason where units differ or have no number; None for metrics whose
    units do not pair."""
    if ours.pairs in (None, "none"):
        return None
    what, n, m = f"{ours.pairs}s", len(ours.values), len(base.values)
    if ours.units != base.units:
        return f"other {what} than the baseline's"
    if n != m:
        return f"{n} {what} here, {m} in the baseline"
    pairs = zip(ours.values, base.values, strict=True)
    d = [x - y for x, y in pairs if x is not None and y is not None]
    return d if len(d) == n else f"{what} without a finite result"


def points(d: Sequence[float], margin: float = MARGINS.points) -> Difference:
    """The mean of per-unit differences [n] of independent units, n >= 2."""
    mean = mean_of_strangers(d)
    assert mean is not None
    p, n = sign_flip_p(d), len(d)
    if all(x in (-1.0, 0.0, 1.0) for x in d):
        gained, lost = d.count(1.0), d.count(-1.0)
        low, high = changed_interval(gained, lost, n) if any(d) else (0.0, 0.0)
        at_least = -changed_at_most(lost, gained, n)
        at_most = changed_at_most(gained, lost, n)
        least = detectable_share(n, (gained + lost) / n) if any(d) else None
    else:
        low, high = mean.interval() if n < _FEW else bootstrap_interval(d)
        at_least, at_most = mean.interval(1 - 2 * ALPHA)
        least = detectable(mean.stderr, mean.df)
    return Difference(
        "points",
        math.fsum(d) / n,
        low,
        high,
        p,
        p < ALPHA and not low <= 0 <= high,
        -margin < at_least and at_most < margin,
        least,
        at_least=at_least,
        at_most=at_most,
    )


def changed_interval(gained: int, lost: int, n: int) -> tuple[float, float]:
    """95% interval of the difference of two shares of the same n units (Agresti and Min 2005, section
    3)."""
    b, c, total = gained + 0.5, lost + 0.5, n + 2
    centre = (b - c) / total
    half = Z_95 * math.sqrt(b + c - (b - c) ** 2 / total) / total
    return max(-1.0, centre - half), min(1.0, centre + half)


def corrected(differences: Sequence[Difference]) -> list[Difference]:
    """Holm's correction of all that were compared with one baseline; those without a p-value as they
    are."""
    tested = [d for d in differences if d.p is not None]
    adjusted = iter(holm([d.p for d in tested if d.p is not None]))
    return [d if d.p is None else _adjusted(d, next(adjusted)) for d in differences]


def _adjusted(change: Difference, p: float) -> Difference:
    return replace(change, adjusted=p, significant=bool(change.significant) and p < ALPHA)


def bootstrap_interval(d: Sequence[float]) -> tuple[float, float]:
    """Percentile interval, 2.5% to 97.5%, of the mean over resampled units. Symmetric by
    construction: that of -d is the mirror image."""
    import numpy as np

    x = np.asarray(d, np.float32)
    if not x.any():
        return 0.0, 0.0
    means = _sums(_counts(len(x)), x) / len(x)
    low, high = round(RESAMPLES * ALPHA / 2), RESAMPLES - 1 - round(RESAMPLES * ALPHA / 2)
    ordered = np.partition(means, (low, high))
    return float(ordered[low]), float(ordered[high])


def sign_flip_p(d: Sequence[float]) -> float:
    """Two-sided p-value of "the sign of every difference is a coin toss"."""
    import numpy as np

    x = np.asarray([v for v in d if v != 0], np.float32)
    if not len(x):
        return 1.0
    if np.all(np.abs(x) == abs(x[0])):
        return mcnemar_p(int((x > 0).sum()), int((x < 0).sum()))
    bound = abs(float(x.sum())) - _EPS
    if len(x) <= EXACT_FLIPS:
        return float((np.abs(_sums(_all_signs(len(x)), x)) >= bound).mean())
    whole = np.asarray(d, np.float32)  # with its zeros: one matrix of signs serves all rows
    extreme = int((np.abs(_sums(_random_signs(len(d)), whole)) >= bound).sum())
    return (1 + extreme) / (1 + RESAMPLES)


def mcnemar_p(gained: int, lost: int) -> float:
    """Exact two-sided McNemar test of units that changed sides: a binomial test with share 1/2."""
    n = gained + lost
    tail = sum(math.comb(n, i) for i in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / (1 << n))


def _sums(weights: NDArray[np.float32], x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each resample's sum: [resamples, n] times [n]. Not ``@``: the threads that BLAS starts for it
    cost many times the product on a machine that is busy measuring."""
    import numpy as np

    sums: NDArray[np.float32] = np.einsum("rn,n->r", weights, x)
    return sums


@cache
def _counts(n: int) -> NDArray[np.float32]:
    """How often each of n units is drawn in each resample: [RESAMPLES, n]."""
    import numpy as np

    drawn = np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
    flat = drawn + n * np.arange(RESAMPLES)[:, None]
    counts = np.bincount(flat.ravel(), minlength=RESAMPLES * n)
    return counts.reshape(RESAMPLES, n).astype(np.float32)


@cache
def _random_signs(n: int) -> NDArray[np.float32]:
    """[RESAMPLES, n] of +1 and -1."""
    import numpy as np

    bits = np.random.default_rng(1).integers(0, 2, (RESAMPLES, n), dtype=np.int8)
    return (2 * bits - 1).astype(np.float32)


@cache
def _all_signs(n: int) -> NDArray[np.float32]:
    """Every pattern of n signs: [2^n, n]."""
    import numpy as np

    patterns = np.arange(2**n)[:, None] >> np.arange(n) & 1
    return np.asarray(2 * patterns - 1, np.float32)
