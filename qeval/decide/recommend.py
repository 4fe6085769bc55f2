"""Which row to run on a card of so much memory: the best in quality that fits, and of those that are
not distinguishable the smallest, then the fastest.

A row is dominated where another one has no worse rank in quality (ranks.py), needs no more memory and
is no slower, and is better in one of the three; rows of which only one has a speed are not compared.
What is not dominated is the Pareto front. The answer is on it: the first by rank, memory and speed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from qeval.core.errors import UsageError, did_you_mean
from qeval.core.record import Metric, Record
from qeval.decide.need import Kind, Need, need
from qeval.decide.ranks import Ranks, ranks
from qeval.report.columns import select
from qeval.report.compare import Margins
from qeval.report.draft import Draft, draft_of
from qeval.report.fill import FoundCell
from qeval.report.row_records import names
from qeval.report.rows import build_table
from qeval.report.table import Column, Entry, Table

SPEED = "decode_tok_s"


@dataclass(frozen=True)
class Asked:
    """``budget`` in bytes; ``min_speed`` in tokens a second, of all sequences together."""

    kind: Kind
    budget: float
    context: int
    batch: int = 1
    min_speed: float | None = None
    margin: float = 0.01


@dataclass(frozen=True)
class Candidate:
    """``rank``: of its quality, from 1; None where that was not measured. ``dominated_by``: the name of
    another candidate; None on the front."""

    name: str
    need: Need
    fits: bool
    quality: Entry
    rank: int | None
    speed: float | None
    fast: bool  # enough
    row: int = -1
    dominated_by: str | None = None

    @property
    def eligible(self) -> bool:
        return self.fits and self.fast and self.rank is not None

    @property
    def key(self) -> tuple[float, float, float, str]:
        """What is preferred goes first."""
        rank = math.inf if self.rank is None else self.rank
        return rank, self.need.total, -(self.speed or 0.0), self.name


@dataclass(frozen=True)
class Recommendation:
    """``excluded``: rows that are no candidates, with the reason. ``quality`` and ``speed``: the
    columns that were looked at; ``beside``: columns that measure quality, too."""

    asked: Asked
    model: str
    candidates: Sequence[Candidate]
    excluded: Mapping[str, str]
    quality: Column
    metric: Metric
    speed: Column | None
    ranks: Ranks
    beside: Sequence[Column] = ()

    @property
    def answer(self) -> Candidate | None:
        return min((c for c in self.candidates if c.eligible), key=lambda c: c.key, default=None)


def recommend(
    records: Iterable[Record],
    asked: Asked,
    *,
    metric: str | None = None,
    model: str | None = None,
    baseline: str | None = None,
) -> Recommendation:
    """
    Args:
        metric: name or glob of the column that says how good a row is.
        model: which one, where the records have several.

    Raises:
        UsageError: no such metric, model or baseline; several models; nothing measures quality.
    """
    records, margins = list(records), Margins(asked.margin, asked.margin)
    draft = draft_of(records, baseline, margins)
    table = build_table(records, columns=["*"], baseline=baseline, margins=margins)
    return recommend_of(draft, table, asked, metric=metric, model=model)


def recommend_of(
    draft: Draft, table: Table, asked: Asked, *, metric: str | None = None, model: str | None = None
) -> Recommendation:
    """``recommend``, from the records' draft and their table with all columns."""
    margins = Margins(asked.margin, asked.margin, nats=math.log1p(asked.margin))
    shown, name = _of_model(draft, model)
    deployable, excluded = _deployable(draft, shown, asked)
    column, beside = _quality(draft, deployable, metric)
    measured = {i: cell for i in deployable if (cell := _number(draft, i, column)) is not None}
    lower = column.better == "lower"
    at_floor = frozenset(i for i in measured if _at_floor(table, i, column))
    ranked = ranks(measured, margins, lower_is_better=lower, at_floor=at_floor)
    speed = _speed(draft, deployable, asked)
    labels = names(draft.rows)
    candidates = [
        _candidate(
            labels[i][1],
            i,
            deployable[i],
            table.rows[i].entries[column.id],
            ranked,
            asked,
            _speed_of(draft, i, speed),
        )
        for i in deployable
    ]
    first = next((c.metric for c in measured.values() if c.metric), None)
    assert first is not None
    return Recommendation(
        asked,
        name,
        sorted((_placed(c, candidates) for c in candidates), key=lambda c: c.key),
        {labels[i][1]: why for i, why in excluded.items()},
        column,
        first,
        speed,
        ranked,
        beside,
    )


def with_context(found: Recommendation, context: int) -> Recommendation:
    """The same rows and ranks at another context."""
    asked = replace(found.asked, context=context)
    bare = [
        replace(c, need=replace(c.need, context=context), dominated_by=None) for c in found.candidates
    ]
    placed = sorted((_placed(c, bare) for c in bare), key=lambda c: c.key)
    return with_budget(replace(found, asked=asked, candidates=placed), asked.budget)


def with_budget(found: Recommendation, budget: float) -> Recommendation:
    """The same rows, ranks and front in so many bytes."""
    fitting = [replace(c, fits=c.need.total <= budget) for c in found.candidates]
    return replace(found, asked=replace(found.asked, budget=budget), candidates=fitting)


def dominates(one: Candidate, other: Candidate) -> bool:
    if one.rank is None or other.rank is None:
        return False
    if (one.speed is None) != (other.speed is None):
        return False
    ours = (one.rank, one.need.total, -(one.speed or 0.0))
    theirs = (other.rank, other.need.total, -(other.speed or 0.0))
    return ours != theirs and all(a <= b for a, b in zip(ours, theirs, strict=True))


def _placed(one: Candidate, every: Sequence[Candidate]) -> Candidate:
    by = min((c for c in every if dominates(c, one)), key=lambda c: c.key, default=None)
    return replace(one, dominated_by=by.name if by else None)


def _candidate(
    name: str,
    row: int,
    needed: Need,
    quality: Entry,
    ranked: Ranks,
    asked: Asked,
    speed: float | None,
) -> Candidate:
    fast = asked.min_speed is None or (speed is not None and speed >= asked.min_speed)
    fits = needed.total <= asked.budget
    return Candidate(name, needed, fits, quality, ranked.of.get(row), speed, fast, row)


def _of_model(draft: Draft, wanted: str | None) -> tuple[list[int], str]:
    """The rows of the one model that is meant, in one dtype, and its name."""
    labels = [
        ", ".join(filter(None, (model, row.dtype)))
        for (model, _), row in zip(names(draft.rows), draft.rows, strict=True)
    ]
    known = list(dict.fromkeys(labels))
    if wanted is not None:
        known = [label for label in known if wanted in (label, label.rpartition(", ")[0])]
        if not known:
            raise UsageError(f"--model: no model is called {wanted!r}{did_you_mean(wanted, labels)}")
    if len(known) > 1:
        raise UsageError(
            f"the results have {len(known)} models: give --model {known[0]!r} or another one"
        )
    return [i for i, label in enumerate(labels) if label in known], "".join(known)


def _deployable(
    draft: Draft, shown: Iterable[int], asked: Asked
) -> tuple[dict[int, Need], dict[int, str]]:
    found, excluded = {}, {}
    for i in shown:
        row = draft.rows[i]
        if row.floor:
            continue
        needed = need(row, asked.kind, asked.context, asked.batch)
        if row.simulated or row.low_bits:
            excluded[i] = "simulated (†): its bytes are computed, and it cannot be deployed as it is"
        elif needed is None:
            excluded[i] = "the size of its weights is not known"
        else:
            found[i] = needed
    return found, excluded


def _quality(draft: Draft, rows: Iterable[int], wanted: str | None) -> tuple[Column, list[Column]]:
    """A divergence, else a perplexity, else a share; of several the one that most rows have, then that
    with the most units."""
    every = [f.column for f in draft.columns.values() if f.column.kind == "metric"]
    own = [c for c in every if c.better != "none" and not c.cost]
    if wanted is not None:
        own = [c for c in select(every, [wanted]) if c in own]
    counted = [(c, found) for c in own if (found := [m for i in rows if (m := _metric(draft, i, c))])]
    if not counted:
        said = f"{wanted!r} says not" if wanted else "nothing in these results says"
        raise UsageError(
            f"{said} how good a row that can be deployed is: measure divergence, perplexity or "
            "humaneval"
        )
    order = sorted(counted, key=lambda pair: (_preference(pair[1][0]), -len(pair[1]), -pair[1][0].n))
    column = order[0][0]
    return column, [c for c, found in counted if c != column and _preference(found[0]) < 3]


def _preference(metric: Metric) -> int:
    if metric.from_baseline:
        return 0 if metric.change == "difference" and metric.values else 3
    return {"relative": 1, "points": 2}.get(str(metric.change), 3)


def _number(draft: Draft, i: int, column: Column) -> FoundCell | None:
    found = draft.cells[i].get(column.id)
    return found if found and found.metric and found.metric.value is not None else None


def _metric(draft: Draft, i: int, column: Column) -> Metric | None:
    found = _number(draft, i, column)
    return found.metric if found else None


def _at_floor(table: Table, i: int, column: Column) -> bool:
    return table.rows[i].entries[column.id].at_floor or (
        table.rows[i].baseline and any(r.floor for r in table.rows)
    )


def _speed(draft: Draft, rows: Iterable[int], asked: Asked) -> Column | None:
    """Decoding on the kind of device that is asked about, in so many sequences, else in the next lower
    number that was measured; of several places that with the most rows."""
    device = "cuda" if asked.kind == "vram" else "cpu"
    found = [
        f.column
        for f in draft.columns.values()
        if f.column.name == SPEED
        and (f.column.place is None or f.column.place.device in (None, device))
    ]

    def key(column: Column) -> tuple[float, int]:
        n = batch_of(column)
        far = asked.batch - n if n <= asked.batch else math.inf
        return far, -sum(_speed_of(draft, i, column) is not None for i in rows)

    return min(found, key=key, default=None)


def batch_of(column: Column) -> int:
    """Sequences at once, from the protocol (``speed/d128+64b8``)."""
    found = re.search(r"b(\d+)$", column.protocol)
    return int(found[1]) if found else 1


def _speed_of(draft: Draft, i: int, column: Column | None) -> float | None:
    metric = None if column is None else _metric(draft, i, column)
    return metric.value if metric else None
