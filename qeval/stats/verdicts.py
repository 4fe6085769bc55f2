"""From a difference and its error to a verdict.

Three verdicts: *different* (the interval leaves out zero), *equivalent* (the difference is within a
margin that the reader set: two one-sided tests, Schuirmann 1987) and *not distinguishable*, which is
neither. Where many rows are compared with one baseline, Holm's step-down correction (1979) keeps the
chance of one false "different" among them at 5%.
"""

from __future__ import annotations

from collections.abc import Sequence

from qeval.stats.series import Mean

ALPHA = 0.05


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
