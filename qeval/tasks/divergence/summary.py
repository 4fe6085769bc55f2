"""What a table shows of token-by-token differences: means with their errors, tails, buckets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from qeval.core.record import Metric
from qeval.stats.series import mean_in_order
from qeval.tasks.divergence.tokens import Tokens

QUANTILES = {"kld_median": 0.5, "kld_p90": 0.9, "kld_p99": 0.99, "kld_p99.9": 0.999, "kld_max": 1.0}
BUCKETS = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)
"""Edges of the baseline's largest probability: the mean is made by tokens that it was unsure of."""


def summarized(windows: Sequence[Tokens], protocol: str) -> tuple[Metric, ...]:
    """``kld`` first. Windows are the units: tokens of one window are no strangers, and neither are
    windows that follow each other (stats/series.py)."""
    tokens = Tokens.joined(list(windows))
    bad = np.isnan(tokens.kld)
    share, sizes = float(bad.mean()), [int((~np.isnan(w.kld)).sum()) for w in windows]
    if bad.all():
        return (_bare("kld", None, protocol, "nats", len(windows), share),)

    def mean(name: str, column: str, unit: str) -> Metric:
        """Over the tokens; its units are windows, which have as many tokens each."""
        units = [_mean(getattr(w, column)) for w in windows]
        return _metric(name, float(np.nanmean(getattr(tokens, column))), units, protocol, unit, share)

    found = [
        mean("kld", "kld", "nats"),
        mean("same_top", "same_top", "share"),
        mean("overlap", "overlap", "share"),
    ]
    kld = tokens.kld[~bad]
    for name, q in QUANTILES.items():
        found.append(_bare(name, float(np.quantile(kld, q)), protocol, "nats", len(kld)))
    rms = math.sqrt(float(np.nanmean(np.square(tokens.delta_p))))
    found.append(_bare("delta_p_rms", rms, protocol, "share", len(kld)))
    difference = tokens.nll_q - tokens.nll_p
    units = [_mean(w.nll_q - w.nll_p) for w in windows]
    found.append(_metric("ln_ppl_ratio", float(np.nanmean(difference)), units, protocol, "nats", share))
    for low, high in pairwise(BUCKETS):
        inside = ~bad & (tokens.top >= low) & ((tokens.top < high) | (high == 1.0))
        if inside.any():
            name, n = f"kld_top_{low:g}_{high:g}", int(inside.sum())
            found.append(_bare(name, float(tokens.kld[inside].mean()), protocol, "nats", n))
    assert sum(sizes) == len(kld)
    return tuple(found)


def expected_metrics(protocol: str) -> tuple[Metric, ...]:
    """Those of a run that was not made yet which have a column, and units that pair."""
    units = {"kld": "nats", "same_top": "share"}
    return tuple(_metric(name, 0.0, (), protocol, unit, 0.0) for name, unit in units.items())


_SHOWN = {"kld": "KLD", "same_top": "same top", "kld_p99": "p99 KLD"}


def _bare(
    name: str, value: float | None, protocol: str, unit: str, n: int, nonfinite: float = 0.0
) -> Metric:
    """A number without units that pair."""
    return Metric(
        name,
        value,
        protocol,
        unit,
        n=n,
        nonfinite=nonfinite,
        better="lower",
        pairs="none",
        change="none",
        heading=_SHOWN.get(name, name),
        group="divergence",
        shown=name in _SHOWN,
        from_baseline=True,
    )


def _mean(column: NDArray[np.float64]) -> float | None:
    finite = column[~np.isnan(column)]
    return float(finite.mean()) if len(finite) else None


def _metric(
    name: str,
    value: float,
    units: Sequence[float | None],
    protocol: str,
    unit: str,
    nonfinite: float,
) -> Metric:
    known = [u for u in units if u is not None]
    mean = mean_in_order(known)
    low, high = (None, None) if mean is None else mean.interval()
    if unit == "share" and low is not None and high is not None:
        low, high = max(0.0, low), min(1.0, high)
    elif name == "kld" and low is not None:
        low = max(0.0, low)
    return Metric(
        name=name,
        value=value,
        protocol=protocol,
        unit=unit,
        stderr=None if mean is None else mean.stderr,
        low=low,
        high=high,
        n=len(known),
        nonfinite=nonfinite,
        values=tuple(units),
        better="higher" if unit == "share" else "lower",
        pairs="window",
        change="points" if unit == "share" else "difference",
        heading=_SHOWN.get(name, name),
        group="divergence",
        shown=name in _SHOWN,
        from_baseline=True,
    )
