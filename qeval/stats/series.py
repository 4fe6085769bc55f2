"""The mean of a series whose neighbours are alike: windows of one text in their order.

Consecutive windows are of one article, one author, one topic, so that their losses are correlated, and
sqrt(variance / n) is the error of a mean of strangers. Here the error is read off the slowest waves of
the series. The projections of the series on the first B cosines,
    L_j = sqrt(2/n) sum_i x_i cos(pi j (i + 1/2) / n),   j = 1 .. B,
are uncorrelated, each with n times the variance of the mean as its variance as far as the spectrum is
flat up to the frequency of the last one. So Var(mean) = mean(L_j^2) / n, and (mean - mu) / SE is
Student's t with B degrees of freedom (Müller, HAC corrections for strongly autocorrelated time series,
JBES 2014; Lazarus, Lewis, Stock and Watson, HAR inference, JBES 2018: "equal-weighted cosines", with
0.4 n^(2/3) of them). With B = n - 1 it is the textbook's formula for independent units.

n / B windows are what a wave needs at the least: the length of a block, in the words of a block
bootstrap. It is chosen from the data: no more waves than n / 8 correlation times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qeval.stats.student import t_p_value, t_quantile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FEWEST = 3  # waves: with fewer, Student's factor is 4.3 and more
_TIMES = 8  # correlation times in a block
_WINDOW = 4  # correlation times after which the sum of autocorrelations stops (Sokal 1989)


@dataclass(frozen=True)
class Mean:
    """``df``: degrees of freedom of Student's t for intervals and tests. ``block``: units, consecutive
    ones, that stand for one independent one (1: all are)."""

    value: float
    stderr: float
    df: int
    n: int

    @property
    def block(self) -> float:
        return self.n / (self.df + 1) if self.df < self.n - 1 else 1.0

    def half_width(self, level: float = 0.95) -> float:
        """Half of the interval that covers the true mean with probability ``level``."""
        return t_quantile((1 + level) / 2, self.df) * self.stderr

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        half = self.half_width(level)
        return self.value - half, self.value + half

    def p_value(self, true: float = 0.0) -> float:
        """Two-sided, of the mean being ``true``."""
        if self.stderr == 0:
            return 1.0 if self.value == true else 0.0
        return t_p_value((self.value - true) / self.stderr, self.df)


def mean_in_order(values: Sequence[float]) -> Mean | None:
    """Of units in the order of their text; None for fewer than two."""
    import numpy as np

    x = np.asarray(values, np.float64)  # [n]
    if len(x) < 2:
        return None
    n_waves = waves(len(x), correlation_time(x))
    j, i = np.arange(1, n_waves + 1)[:, None], np.arange(len(x))
    cosines = np.sqrt(2 / len(x)) * np.cos(np.pi * j * (i + 0.5) / len(x))  # [waves, n]
    power = float(np.square(np.einsum("wn,n->w", cosines, x - x.mean())).mean())
    return Mean(float(x.mean()), (power / len(x)) ** 0.5, n_waves, len(x))


def mean_of_strangers(values: Sequence[float]) -> Mean | None:
    """Of independent units; None for fewer than two."""
    import numpy as np

    x = np.asarray(values, np.float64)
    if len(x) < 2:
        return None
    return Mean(float(x.mean()), float(x.std(ddof=1)) / len(x) ** 0.5, len(x) - 1, len(x))


def waves(n: int, time: float) -> int:
    """How many are used of n windows with a correlation time: the degrees of freedom of their mean."""
    most = min(round(0.41 * n ** (2 / 3)), int(n / (_TIMES * time)))
    return int(min(n - 1, max(_FEWEST, most)))


def correlation_time(values: Sequence[float] | NDArray[np.float64]) -> float:
    """1 + 2 (r_1 + r_2 + ...): by how much the variance of the mean is larger than that of as many
    strangers; 1 where neighbours are unlike. The sum stops at the first lag that is ``_WINDOW`` times
    what it came to (Sokal, Monte Carlo methods in statistical mechanics, 1989, section 3)."""
    import numpy as np

    x = np.asarray(values, np.float64)
    d = x - x.mean()
    largest = float(np.abs(d).max())
    if largest == 0:
        return 1.0
    spectrum = np.fft.rfft(d / largest, 2 * len(d))
    r = np.fft.irfft(np.square(np.abs(spectrum)))[: len(d)]
    sums = 2 * np.cumsum(r / r[0]) - 1
    far = np.flatnonzero(np.arange(len(d)) >= _WINDOW * sums)
    return max(1.0, float(sums[far[0] if len(far) else -1]))
