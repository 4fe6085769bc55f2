"""A row against its baseline: the difference of one metric, with its 95% interval where units pair.

One function a kind of comparison, chosen by what the metric says (``Metric.change``; ``Metric.pairs``
says what its units are):

relative   d_i = log_i - log0_i of unit i (of a perplexity: mean NLL of window i); change of the value
           exp(mean d) - 1 with Student's t-interval of the mean, both ends carried through exp(.) - 1.
points     d_i = share_i - share0_i of unit i (of pass@k: the estimate for problem i): difference of the
           means in points, percentile bootstrap over the units (10,000 resamples, fixed seed) and a
           two-sided sign-flip permutation p-value: exact for one sample a problem (it is McNemar's
           exact test then) and for up to 12 units that differ, else 10,000 fixed random flips.
           Without a test where units do not pair.
ratio      the ratio, without a test; ``time`` is the same, where less is better.

A difference is significant when its interval leaves out "no difference" and its p-value, where there is
one, is under 0.05. No scipy: the parent process does this while it prints a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from qeval.core.intervals import t_quantile
from qeval.core.record import SHARE_UNITS, Change, Metric

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


RESAMPLES = 10_000
ALPHA = 0.05
EXACT_FLIPS = 12  # 2^12 sign patterns are enumerated
_EPS = 1e-5  # float32 sums that are equal on paper


@dataclass(frozen=True)
class Difference:
    """``value`` is a share for "relative" (0.013: 1.3% more) and "points" (-0.037: 3.7 points less), a
    factor for "ratio" (of a speed, a size, whatever else) and "time" (where less is better).
    ``significant`` is None where nothing can be tested."""

    kind: Change
    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    significant: bool | None = None


def difference(ours: Metric, base: Metric) -> Difference | str | None:
    """``ours`` against ``base`` (same name and protocol), the reason why they cannot be compared, or
    None where there is nothing to divide or subtract (a result that is not finite, or zero)."""
    compared = COMPARISONS.get(ours.change or "none")
    if compared is None or ours.value is None or base.value is None:
        return None
    return compared(ours, base)


def relative(ours: Metric, base: Metric) -> Difference | str | None:
    d = _paired(ours, base)
    if isinstance(d, str):
        return d
    if d is None or len(d) < 2:  # one long window, or none kept: nothing to test with
        return _ratio(ours, base, "relative")
    mean, half = t_interval(d)
    low, high = _growth(mean - half), _growth(mean + half)
    return Difference("relative", _growth(mean), low, high, significant=not low <= 0 <= high)


def _growth(log_ratio: float) -> float:
    return math.expm1(min(log_ratio, 700.0))


def _ratio(ours: Metric, base: Metric, kind: Change) -> Difference | None:
    if not ours.value or not base.value or ours.value * base.value < 0:
        return None
    factor = ours.value / base.value
    return Difference(kind, factor - 1 if kind == "relative" else factor)


def share(ours: Metric, base: Metric) -> Difference | str:
    assert ours.value is not None and base.value is not None
    one = SHARE_UNITS.get(ours.unit, 1.0)
    d = _paired(ours, base)
    if d is None:
        return Difference("points", (ours.value - base.value) / one)
    if isinstance(d, str):
        return d
    if len(d) < 2:
        return f"fewer than two {ours.pairs}s with a result"
    return points([x / one for x in d])


def ratio(ours: Metric, base: Metric) -> Difference | None:
    return _ratio(ours, base, "ratio")


def time(ours: Metric, base: Metric) -> Difference | None:
    return _ratio(ours, base, "time")


COMPARISONS: Mapping[Change, Callable[[Metric, Metric], Difference | str | None]] = {
    "relative": relative,
    "points": share,
    "ratio": ratio,
    "time": time,
}


def _paired(ours: Metric, base: Metric) -> list[float] | str | None:
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


def points(d: Sequence[float]) -> Difference:
    """The mean of per-unit differences [n], n >= 2, with its bootstrap interval and p-value."""
    low, high = bootstrap_interval(d)
    p = sign_flip_p(d)
    significant = p < ALPHA and not low <= 0 <= high
    return Difference("points", math.fsum(d) / len(d), low, high, p, significant)


def t_interval(d: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of the 95% t-interval of at least two numbers."""
    n = len(d)
    mean = math.fsum(d) / n
    variance = math.fsum((x - mean) ** 2 for x in d) / (n - 1)
    return mean, t_quantile(n - 1) * math.sqrt(variance / n)


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
