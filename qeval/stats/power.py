"""What a run could have seen, and what one that is planned will see.

The smallest true difference that a test at 5% finds with 80% power: from the error of a run that was
made (``detectable``), or from the spread of an earlier one for any number of units (``Spread``). An
earlier run knows its spread with an error of its own, which counts: the power is 80% on average over
what such earlier runs say (the noncentral t distribution, in the approximation of Johnson and Welch,
Biometrika 1940), where the plain formula with the spread of 16 windows comes to 63%.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from statistics import NormalDist
from typing import Protocol

from qeval.stats.series import correlation_time, mean_in_order, mean_of_strangers, waves
from qeval.stats.student import t_quantile
from qeval.stats.verdicts import ALPHA

POWER = 0.80
MOST_UNITS = 10**9
_FEW_SIDES = 30  # items that change sides, up to which the power of the exact test is summed up
_Z, _Z_POWER = NormalDist().inv_cdf(1 - ALPHA / 2), NormalDist().inv_cdf(POWER)


def detectable(stderr: float, df: int) -> float:
    """The smallest true difference that a test at ALPHA would have found with probability POWER, given
    the standard error of the difference: (t_{1-alpha/2} + t_power) SE."""
    return (t_quantile(1 - ALPHA / 2, df) + t_quantile(POWER, df)) * stderr


@lru_cache(maxsize=1024)
def detectable_share(n: int, changed: float) -> float:
    """``detectable`` for n paired items that pass or fail, of which the share ``changed`` changes
    sides, by McNemar's test. It cannot be over ``changed``: infinite where no difference would have
    been found with that power."""
    if n < 1 or not 0 < changed <= 1 or not _finds_share(n, changed, changed):
        return math.inf
    low, high = 0.0, changed
    for _ in range(20):  # the power rises with the difference
        d = (low + high) / 2
        low, high = (low, d) if _finds_share(n, changed, d) else (d, high)
    return high


def _finds_share(n: int, changed: float, d: float) -> bool:
    """Exactly where few items change sides, else by the normal distribution (Connett, Smith and McHugh,
    Statistics in Medicine 1987)."""
    if n * changed <= _FEW_SIDES:
        return mcnemar_power(n, changed, d) >= POWER
    return n * d * d >= (_Z * math.sqrt(changed) + _Z_POWER * math.sqrt(max(0.0, changed - d * d))) ** 2


def mcnemar_power(n: int, changed: float, d: float) -> float:
    """How often McNemar's exact test at ALPHA finds that items of n change sides, each with probability
    ``changed``, and are lost more often than gained, by ``d``. n * changed must be small: the sum is
    over the numbers of items that may change sides."""
    lost = min(1.0, (1 + d / changed) / 2)
    most = min(n, math.ceil(n * changed + 8 * math.sqrt(n * changed) + 8))
    return math.fsum(
        _binomial(n, m, changed)
        * math.fsum(_binomial(m, k, lost) for k in range(_rejects_from(m), m + 1))
        for m in range(1, most + 1)
    )


def _binomial(n: int, k: int, p: float) -> float:
    if p in (0.0, 1.0):
        return float(k == n * p)
    log = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(log + k * math.log(p) + (n - k) * math.log1p(-p))


@cache
def _rejects_from(m: int) -> int:
    """The fewest of m items on one side that the exact two-sided test rejects; m + 1: none."""
    tail, k = 0, m + 1
    while k > 0 and 2 * (tail + math.comb(m, k - 1)) < ALPHA * (1 << m):
        k -= 1
        tail += math.comb(m, k)
    return k


class Spread(Protocol):
    def finds(self, n: int) -> float:
        """The smallest true difference that a run of n units will find with probability POWER; infinite
        where there is none."""
        ...


@dataclass(frozen=True)
class Units:
    """Of the mean of paired differences. ``deviation``: the standard error of the mean of n units,
    times sqrt(n); ``df``: degrees of freedom that it was found with; ``time``: of the units'
    correlation, None where they are independent."""

    deviation: float
    df: int
    time: float | None = None

    def finds(self, n: int) -> float:
        if n < 2:
            return math.inf
        df = n - 1 if self.time is None else waves(n, self.time)
        return _factor(df, self.df) * self.deviation / math.sqrt(n)


@dataclass(frozen=True)
class Sides:
    """Of items that pass or fail, of which the share ``changed`` changes sides."""

    changed: float

    def finds(self, n: int) -> float:
        return detectable_share(n, self.changed)


def spread_in_order(d: Sequence[float]) -> Units | None:
    """Of the differences of windows in the order of their text; None for fewer than two."""
    mean = mean_in_order(d)
    if mean is None:
        return None
    return Units(mean.stderr * math.sqrt(mean.n), mean.df, correlation_time(d))


def spread_of_strangers(d: Sequence[float]) -> Units | None:
    mean = mean_of_strangers(d)
    return None if mean is None else Units(mean.stderr * math.sqrt(mean.n), mean.df)


def spread_of_sides(changed: int, n: int) -> Sides:
    """From ``changed`` of n items; half a unit is added to gains and losses each, as for the interval
    of their difference: that none of a few changed does not mean that none will."""
    return Sides((changed + 1) / (n + 2))


def _factor(df: int, known: int) -> float:
    """Times the standard error, which is estimated with ``df`` degrees of freedom by the test and with
    ``known`` by the earlier run: the 80% quantile of a noncentral t."""
    delta = t_quantile(1 - ALPHA / 2, df) + t_quantile(POWER, df) - _Z_POWER
    a, b = 1 - 1 / (4 * known), _Z_POWER**2 / (2 * known)
    return (a * delta + math.sqrt((a * delta) ** 2 - (a * a - b) * (delta**2 - _Z_POWER**2))) / (
        a * a - b
    )


def units_for(wished: float, finds: Callable[[int], float]) -> int | None:
    """The fewest units that find the difference ``wished``; None where MOST_UNITS do not.

    Args:
        finds: ``Spread.finds``, falling in n.
    """
    if wished <= 0:
        raise ValueError("a wished difference is over zero")
    low, high = 1, 2
    while finds(high) > wished:
        low, high = high, 2 * high
        if high > MOST_UNITS:
            return None
    while high - low > 1:
        n = (low + high) // 2
        low, high = (low, n) if finds(n) <= wished else (n, high)
    return high
