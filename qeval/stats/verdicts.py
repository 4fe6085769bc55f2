"""From a difference and its error to a verdict, and what a run could have seen at all.

Three verdicts: *different* (the interval leaves out zero), *equivalent* (the difference is within a
margin that the reader set: two one-sided tests, Schuirmann 1987) and *not distinguishable*, which is
neither. Where many rows are compared with one baseline, Holm's step-down correction (1979) keeps the
chance of one false "different" among them at 5%.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from qeval.stats.series import Mean
from qeval.stats.student import t_quantile

ALPHA = 0.05
POWER = 0.80


def equivalent(difference: Mean, margin: float) -> bool:
    """Whether both one-sided tests say that the difference is within +-``margin``: the same as its 90%
    interval lying inside."""
    low, high = difference.interval(1 - 2 * ALPHA)
    return -margin < low and high < margin


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given: below ALPHA where Holm's procedure rejects."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def detectable(stderr: float, df: int, power: float = POWER) -> float:
    """The smallest true difference that a test at ALPHA would have found with probability ``power``,
    given the standard error of the difference: (t_{1-alpha/2} + t_power) SE."""
    return (t_quantile(1 - ALPHA / 2, df) + t_quantile(power, df)) * stderr


def detectable_share(n: int, changed: float, power: float = POWER) -> float:
    """``detectable`` for n paired items that pass or fail, of which the share ``changed`` changes sides
    (McNemar's test; Connett, Smith and McHugh, Statistics in Medicine 1987). It cannot be over
    ``changed``: then no difference would have been found with that power."""
    if n < 1 or not 0 < changed <= 1:
        return math.inf
    z, z_power = NormalDist().inv_cdf(1 - ALPHA / 2), NormalDist().inv_cdf(power)
    low, high = 0.0, changed
    for _ in range(60):  # the power rises with the difference
        d = (low + high) / 2
        needed = (z * math.sqrt(changed) + z_power * math.sqrt(max(0.0, changed - d * d))) ** 2
        low, high = (low, d) if n * d * d >= needed else (d, high)
    return high if n * high * high >= (z * math.sqrt(changed)) ** 2 else math.inf


def units_for(wished: float, stderr: float, n: int, power: float = POWER) -> int:
    """How many units like these n would find the difference ``wished``, whose standard error is
    ``stderr`` at n."""
    if wished <= 0:
        raise ValueError("a wished difference is over zero")
    z = NormalDist().inv_cdf(1 - ALPHA / 2) + NormalDist().inv_cdf(power)
    return max(2, math.ceil(n * (z * stderr / wished) ** 2))
