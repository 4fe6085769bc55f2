"""Series behind single numbers: divergence by certainty, perplexity by window, speed by batch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qeval.core.record import Metric, Record
from qeval.decide.recommend import SPEED, batch_of
from qeval.report.draft import Draft
from qeval.report.row_records import baselines, names

_BUCKET = re.compile(r"kld_top_([\d.]+)_([\d.]+)")


@dataclass(frozen=True)
class Bucket:
    """Tokens for which the baseline's largest probability lies between ``low`` and ``high``."""

    low: float
    high: float
    kld: float  # mean, nats
    n: int  # tokens


@dataclass(frozen=True)
class Certainty:
    """Of one row under one protocol."""

    model: str
    row: str
    protocol: str
    buckets: tuple[Bucket, ...]


@dataclass(frozen=True)
class Windows:
    """The perplexity of each window of one row. ``nll``: its mean, nats; None where not finite.
    ``baseline``: the row it is compared with, "" for none."""

    model: str
    row: str
    protocol: str
    baseline: str
    nll: tuple[float | None, ...]


@dataclass(frozen=True)
class Speed:
    """Tokens a second in so many sequences at once; ``low``, ``high``: of the repeats."""

    model: str
    row: str
    what: str  # "decode, speed/d128+64, on box, 4 threads of a CPU"
    batch: int
    value: float
    low: float | None
    high: float | None


def certainties(draft: Draft) -> list[Certainty]:
    found = []
    for i, (model, row) in enumerate(names(draft.rows)):
        for record, metrics in _newest(draft, i):
            buckets = [b for m in metrics if (b := _bucket(m)) is not None]
            if buckets:
                protocol = _protocol(record, metrics[0])
                found.append(Certainty(model, row, protocol, tuple(buckets)))
    return found


def _bucket(metric: Metric) -> Bucket | None:
    named = _BUCKET.fullmatch(metric.name)
    if named is None or metric.value is None:
        return None
    return Bucket(float(named[1]), float(named[2]), metric.value, metric.n)


def windows(draft: Draft) -> list[Windows]:
    found, shown, bases = [], names(draft.rows), baselines(draft.rows)
    for i, (model, row) in enumerate(shown):
        for record, metrics in _newest(draft, i):
            for m in metrics:
                if m.pairs == "window" and m.change == "relative" and m.values:
                    base = bases[i]
                    name = "" if base is None else shown[base][1]
                    values = tuple(_finite(x) for x in m.values)
                    found.append(Windows(model, row, _protocol(record, m), name, values))
    return found


def speeds(draft: Draft) -> list[Speed]:
    found = []
    for i, (model, row) in enumerate(names(draft.rows)):
        if draft.rows[i].costs_as_float:
            continue
        cells = [(draft.columns[name].column, cell) for name, cell in draft.cells[i].items()]
        for column, cell in sorted(cells, key=lambda pair: batch_of(pair[0])):
            metric = cell.metric if cell else None
            if column.name != SPEED or metric is None or metric.value is None:
                continue
            protocol = re.sub(r"b\d+$", "", column.protocol)
            at = f" on {column.place.words()}" if column.place else ""
            what = f"{protocol}{at}"
            found.append(
                Speed(model, row, what, batch_of(column), metric.value, metric.low, metric.high)
            )
    return found


def _newest(draft: Draft, i: int) -> Iterator[tuple[Record, Sequence[Metric]]]:
    """The records that the table's row shows, once each."""
    seen = set()
    for cell in draft.cells[i].values():
        if cell is not None and cell.record.status == "ok" and cell.record.key not in seen:
            seen.add(cell.record.key)
            yield cell.record, cell.record.metrics


def _protocol(record: Record, metric: Metric) -> str:
    """With ``[first N]``, where the limit cut something off."""
    limit = record.cell.get("limit")
    cut = limit is not None and not 0 < metric.n < limit
    return metric.protocol + (f" [first {limit}]" if cut and metric.pairs != "none" else "")


def _finite(x: float | None) -> float | None:
    return None if x is None or not math.isfinite(x) else round(x, 5)
