"""A row against its baseline: the difference of one metric, paired unit by unit, with its 95% interval.

Perplexity      d_i = NLL_i - NLL0_i of window i; relative change exp(mean d) - 1 with Student's
                t-interval of the mean, both ends carried through exp(.) - 1.
pass@k          d_i = pass_i - pass0_i of problem i (docs/protocols.md): difference of the means in
                points, percentile bootstrap over the problems (10,000 resamples, fixed seed) and a
                two-sided sign-flip permutation p-value: exact for one sample a problem (it is McNemar's
                exact test then) and for up to 12 problems that differ, else 10,000 fixed random flips.
other shares    the same in points; without a test where the metric has no values of units.
anything else   the ratio, without a test; none in dB.

A difference is significant when its interval leaves out "no difference" and its p-value, where there is
one, is under 0.05. No scipy: the parent process does this while it prints a table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

from qeval.core.intervals import t_quantile
from qeval.core.record import Metric

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Kind = Literal["relative", "points", "ratio", "time"]

RESAMPLES = 10_000
ALPHA = 0.05
EXACT_FLIPS = 12  # 2^12 sign patterns are enumerated
SHARE_UNITS = {"share": 1.0, "%": 100.0}  # and how much the whole is
TIME_UNITS = frozenset({"s", "ms"})
_EPS = 1e-5  # float32 sums that are equal on paper


@dataclass(frozen=True)
class Difference:
    """``value`` is a share for "relative" (0.013: 1.3% more) and "points" (-0.037: 3.7 points less), a
    factor for "ratio" (of a speed, a size, whatever else) and "time" (where less is better).
    ``significant`` is None where nothing can be tested."""

    kind: Kind
    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    significant: bool | None = None


def difference(ours: Metric, base: Metric) -> Difference | str | None:
    """``ours`` against ``base`` (same name and protocol), the reason why they cannot be compared, or
    None where there is nothing to divide or subtract (a result that is not finite, or zero)."""
    if ours.value is None or base.value is None:
        return None
    if ours.name == "ppl":
        return _perplexity(ours, base)
    if ours.name.startswith("pass@"):
        return _pass_at_k(ours, base)
    if ours.unit in SHARE_UNITS:
        return _share(ours, base, SHARE_UNITS[ours.unit])
    if ours.unit == "dB":  # a logarithm: its ratio says nothing
        return None
    return _ratio(ours, base, "time" if ours.unit in TIME_UNITS else "ratio")


def _perplexity(ours: Metric, base: Metric) -> Difference | str | None:
    if len(ours.values) != len(base.values):
        return f"{len(ours.values)} windows here, {len(base.values)} in the baseline"
    if len(ours.values) < 2:  # one long window, or none kept: nothing to test with
        return _ratio(ours, base, "relative")
    d = _paired(ours.values, base.values)
    if d is None:
        return "windows without a finite result"
    mean, half = t_interval(d)
    low, high = _growth(mean - half), _growth(mean + half)
    return Difference("relative", _growth(mean), low, high, significant=not low <= 0 <= high)


def _growth(log_ratio: float) -> float:
    return math.expm1(min(log_ratio, 700.0))


def _ratio(ours: Metric, base: Metric, kind: Kind) -> Difference | None:
    if not ours.value or not base.value or ours.value * base.value < 0:
        return None
    factor = ours.value / base.value
    return Difference(kind, factor - 1 if kind == "relative" else factor)


def _pass_at_k(ours: Metric, base: Metric) -> Difference | str | None:
    if not _same_units(ours, base):
        return "other problems than the baseline's"
    d = _paired(ours.values, base.values)
    if d is None or len(d) < 2:
        return "fewer than two problems with a result"
    return points(d)


def _share(ours: Metric, base: Metric, one: float) -> Difference:
    """Of a plug-in's metric: in points of ``one``, paired where both have the same units."""
    assert ours.value is not None and base.value is not None
    d = _paired(ours.values, base.values) if _same_units(ours, base) else None
    if d is None or len(d) < 2:
        return Difference("points", (ours.value - base.value) / one)
    return points([x / one for x in d])


def _same_units(ours: Metric, base: Metric) -> bool:
    return ours.units == base.units and len(ours.values) == len(base.values)


def _paired(a: Sequence[float | None], b: Sequence[float | None]) -> list[float] | None:
    """a - b unit by unit; None where a unit has no number."""
    d = [x - y for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    return d if len(d) == len(a) else None


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
