"""Student's t with a whole number of degrees of freedom, without scipy, which takes longer to import
than a table to print.

The distribution has closed finite sums (Abramowitz and Stegun, Handbook of Mathematical Functions,
26.7.3 and 26.7.4).
"""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist

_NEARLY_NORMAL = 2000  # degrees of freedom: the two agree to 4e-4 there


def t_cdf(x: float, df: int) -> float:
    """P(T <= x). Raises ValueError where ``df`` is below 1."""
    if df < 1:
        raise ValueError(f"{df} degrees of freedom")
    if df > _NEARLY_NORMAL:
        return NormalDist().cdf(x)
    angle = math.atan2(x, math.sqrt(df))
    cos2, odd = math.cos(angle) ** 2, df % 2
    term, total = 1.0, 0.0
    for i in range((df - odd) // 2):  # 1 + 1/2 cos^2 + 1*3/(2*4) cos^4 ...; 2/3, 2*4/(3*5) where odd
        total += term
        term *= cos2 * (2 * i + 1 + odd) / (2 * i + 2 + odd)
    if odd:
        inside = 2 / math.pi * (angle + math.sin(angle) * math.cos(angle) * total)
    else:
        inside = math.sin(angle) * total
    return 0.5 + inside / 2


@cache
def t_quantile(p: float, df: int) -> float:
    """x with P(T <= x) = p, to 1e-9. Raises ValueError where p is not in (0, 1)."""
    if not 0 < p < 1:
        raise ValueError(f"no quantile {p}")
    if p < 0.5:
        return -t_quantile(1 - p, df)
    low, high = 0.0, 1.0
    while t_cdf(high, df) < p:
        high *= 2
    while high - low > 1e-10 * max(1.0, high):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, df) < p else (low, middle)
    return (low + high) / 2


def t_p_value(x: float, df: int) -> float:
    """Two-sided: P(|T| >= |x|)."""
    return 2 * t_cdf(-abs(x), df)
