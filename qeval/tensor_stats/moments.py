"""Moments of a stream of tensors, in constant memory and exact to float64's rounding.

Each piece gets its mean and its central sums M_k = sum (x - mean)^k (k = 2, 3, 4) in two passes, and
pieces are merged pairwise: Chan, Golub, LeVeque 1979 for M2; Pebay 2008 (Sandia report SAND2008-6212)
for M3 and M4. So the result does not depend on how the stream was cut.

Standard deviation: of the population, sqrt(M2 / n), as numpy's. Kurtosis: Pearson's, n M4 / M2^2, the
mean of ((x - mean) / std)^4; 3 for a normal distribution, 1.8 for a uniform one (scipy.stats.kurtosis
with fisher=False).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

PIECE = {"cpu": 2**17, "cuda": 2**22}  # elements at a time; of the CPU's what its caches hold
_CONSTANT = 1e-14  # a spread under this share of AbsMax is float64's rounding of equal values


@dataclass(frozen=True)
class Moments:
    """Of the finite values among those seen. ``m2`` .. ``m4`` are the central sums."""

    n: int = 0
    mean: float = 0.0
    m2: float = 0.0
    m3: float = 0.0
    m4: float = 0.0
    absmax: float = 0.0
    nonfinite: int = 0  # values left out: NaN and infinities

    @property
    def std(self) -> float | None:
        return math.sqrt(self.m2 / self.n) if self.n else None

    @property
    def kurtosis(self) -> float | None:
        """None where all values are equal, or their fourth powers exceed a float."""
        least = _CONSTANT * self.absmax
        square = self.m2 * self.m2
        if self.m2 <= self.n * least * least or not 0 < square < math.inf:
            return None
        return self.n * self.m4 / square

    def __add__(self, other: Moments) -> Moments:
        lost = self.nonfinite + other.nonfinite
        if not self.n or not other.n:
            some = self if self.n else other
            return Moments(some.n, some.mean, some.m2, some.m3, some.m4, some.absmax, lost)
        a, b, n = self.n, other.n, self.n + other.n
        step = (other.mean - self.mean) / n  # delta / n of the formulas
        square = step * step
        between = square * a * b
        return Moments(
            n,
            self.mean + b * step,
            self.m2 + other.m2 + n * between,
            self.m3 + other.m3 + n * step * between * (a - b) + 3 * step * (a * other.m2 - b * self.m2),
            self.m4
            + other.m4
            + n * square * between * (a * a - a * b + b * b)
            + 6 * square * (a * a * other.m2 + b * b * self.m2)
            + 4 * step * (a * other.m3 - b * self.m3),
            max(self.absmax, other.absmax),
            lost,
        )


def moments(values: Tensor) -> Moments:
    """Of all values of a tensor of any shape and floating dtype."""
    total = Moments()
    for part in torch.split(values.reshape(-1), piece(values)):
        total += _of_part(part)
    return total


def piece(values: Tensor) -> int:
    return PIECE.get(values.device.type, PIECE["cuda"])


def _of_part(values: Tensor) -> Moments:
    x = values.to(torch.float64, copy=True)
    mean, lost = x.mean(), 0
    if not torch.isfinite(mean):
        x = x[torch.isfinite(x)]
        lost, mean = values.numel() - x.numel(), x.mean()
    if not x.numel():
        return Moments(nonfinite=lost)
    least, most = torch.aminmax(x)
    x -= mean
    square = x * x
    sums = torch.stack([mean, square.sum(), square @ x, square @ square, least, most])
    center, m2, m3, m4, low, high = sums.tolist()
    return Moments(x.numel(), center, m2, m3, m4, max(-low, high), lost)


class Channels:
    """The largest absolute value of each channel, over all rows seen."""

    def __init__(self) -> None:
        self.absmax: Tensor | None = None  # [channels], float32

    def add(self, rows: Tensor) -> None:
        """``rows``: [n, channels], finite."""
        found = rows.abs().amax(0).float()
        self.absmax = found if self.absmax is None else torch.maximum(self.absmax, found)


class Noise:
    """Rounding error of each channel beside the channel's own power.

    Not one ratio of all power: a single large channel has nearly all of it, and would hide that it left
    nothing of the others.
    """

    def __init__(self) -> None:
        self._powers: Tensor | None = None  # [2, channels], float64: of the values, of their errors

    def add(self, rows: Tensor, rounded: Tensor) -> None:
        """Both [n, channels], finite."""
        wide = rows.double()
        powers = torch.stack([x.square().sum(0) for x in (wide, wide - rounded)])
        self._powers = powers if self._powers is None else self._powers + powers

    @property
    def db(self) -> float | None:
        """-10 log10 of the mean over channels of (power of the error / power of the channel), without
        channels of zeros. None where no channel has a value, or nothing was lost."""
        if self._powers is None:
            return None
        power, error = self._powers[:, self._powers[0] > 0]
        share = (error / power).mean().item() if len(power) else 0.0
        return -10 * math.log10(share) if 0 < share < math.inf else None
