"""The Pareto plot's points and the sentences beside it, for each context and memory that can be chosen.

Both are `qeval recommend`'s: the page chooses among what is computed here and decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from qeval.core.errors import UsageError
from qeval.core.record import Record
from qeval.core.units import GIB
from qeval.decide.need import Kind, Need, need
from qeval.decide.recommend import Asked, Recommendation, recommend_of, with_budget, with_context
from qeval.decide.recommend_forms import sentences
from qeval.report.draft import Draft
from qeval.report.format import difference_text, printed_unit, value_text
from qeval.report.row_records import names
from qeval.report.table import Column, Entry, Table

CONTEXTS = (512, 2048, 4096, 8192, 16384, 32768, 131072)
USUAL_CONTEXT = 4096
CARDS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 128, 141, 192, 256, 512, 1024)  # GiB


@dataclass(frozen=True)
class Wanted:
    """What `qeval report` is asked. ``kind``, ``budget`` (bytes) and ``context`` None: as the records
    suggest; all can be changed on the page."""

    kind: Kind | None = None
    budget: float | None = None
    context: int | None = None
    batch: int = 1
    margin: float = 0.01
    metric: str | None = None
    baseline: str | None = None


@dataclass(frozen=True)
class Loss:
    """How much worse a row is than the baseline: over 0 is worse. In nats (or the metric's own unit),
    in percent, or in points of a share."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Point:
    """A row of the Pareto plot. ``why``: why it is no candidate; "" where it is one."""

    row: str
    need: Need
    loss: Loss
    said: str  # its number and the difference, as the table has them
    rank: int | None
    speed: float | None
    simulated: bool
    baseline: bool
    why: str = ""


@dataclass(frozen=True)
class Choice:
    """At one context. ``needs``: bytes, of each point; ``dominated``: by which other one, "" for none.
    ``budgets``: memories that can be chosen, in bytes; ``said``, ``answers`` ("": none): of each."""

    context: int
    needs: tuple[float, ...]
    dominated: tuple[str, ...]
    budgets: tuple[float, ...]
    said: tuple[tuple[str, ...], ...]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """Of one model. ``reason``: why there is none, which leaves all else empty."""

    model: str
    reason: str = ""
    kind: Kind = "ram"
    batch: int = 1
    context: int = 0
    budget: float = 0.0
    title: str = ""  # of the axis of losses
    unit: str = ""  # "nats", "%", "points", ...
    protocol: str = ""
    points: tuple[Point, ...] = ()
    choices: tuple[Choice, ...] = ()
    undrawn: tuple[str, ...] = ()  # rows without a loss


def verdicts(records: Sequence[Record], draft: Draft, table: Table, wanted: Wanted) -> list[Verdict]:
    """One for each model and dtype, in the table's order.

    Args:
        draft, table: of the records, the table with all columns.

    Raises:
        UsageError: no model has the metric that is wanted.
    """
    shown = [", ".join(filter(None, (row.model, row.dtype))) for row in table.rows]
    found = [_verdict(records, draft, table, wanted, model) for model in dict.fromkeys(shown)]
    if wanted.metric is not None and found and all(v.reason for v in found):
        raise UsageError(found[0].reason)
    return found


def _verdict(
    records: Sequence[Record], draft: Draft, table: Table, wanted: Wanted, model: str
) -> Verdict:
    kind = wanted.kind or _kind(records)
    context = wanted.context or USUAL_CONTEXT
    asked = Asked(kind, wanted.budget or 1.0, context, wanted.batch, margin=wanted.margin)
    try:
        found = recommend_of(draft, table, asked, metric=wanted.metric, model=model)
    except UsageError as err:
        return Verdict(model, str(err))
    budget = wanted.budget or _enough(c.need.total for c in found.candidates)
    points, undrawn = _points(found, draft, table)
    contexts = sorted({*CONTEXTS, context})
    choices = tuple(_choice(with_context(found, n), points, budget) for n in contexts)
    title, unit = _axis(found.quality, table)
    first = f" [first {found.quality.limit}]" if found.quality.limit else ""
    return Verdict(
        model,
        "",
        kind,
        wanted.batch,
        context,
        budget,
        title,
        unit,
        found.quality.protocol + first,
        points,
        choices,
        undrawn,
    )


def short_name(model: str) -> str:
    """Of a path on this machine its last part."""
    return model.rstrip("/").rsplit("/", 1)[-1] if model.startswith(("/", ".", "~")) else model


def _kind(records: Sequence[Record]) -> Kind:
    """Where the records were measured: a GPU, if any was."""
    on_gpu = any(r.conditions and str(r.conditions.device).startswith("cuda") for r in records)
    return "vram" if on_gpu else "ram"


def _enough(needs: Iterator[float]) -> float:
    """The smallest usual memory that the largest need fits."""
    most = max(needs, default=0.0)
    return next((float(n * GIB) for n in CARDS if n * GIB >= most), most)


def _choice(found: Recommendation, points: Sequence[Point], budget: float) -> Choice:
    by = {c.name: c for c in found.candidates}
    context = found.asked.context
    needs = tuple(replace(p.need, context=context).total for p in points)
    most = max((c.need.total for c in found.candidates), default=0.0)
    cards = [float(n * GIB) for n in CARDS]
    usual = [n for n in cards if n < most] + [n for n in cards if n >= most][:1]
    budgets = sorted({*usual, budget, *(c.need.total for c in found.candidates)})
    at = [with_budget(found, n) for n in budgets]
    return Choice(
        context,
        needs,
        tuple(by[p.row].dominated_by or "" if p.row in by else "" for p in points),
        tuple(budgets),
        tuple(tuple(sentences(one)) for one in at),
        tuple(one.answer.name if one.answer else "" for one in at),
    )


def _points(
    found: Recommendation, draft: Draft, table: Table
) -> tuple[tuple[Point, ...], tuple[str, ...]]:
    labels, points, undrawn = names(draft.rows), [], []
    own = {c.row: c for c in found.candidates}
    asked = found.asked
    for i, row in enumerate(draft.rows):
        name = labels[i][1]
        if row.floor or (i not in own and name not in found.excluded) or _other(found, table, i):
            continue
        entry = table.rows[i].entries[found.quality.id]
        loss = loss_of(found.quality, entry, baseline=table.rows[i].baseline)
        taken = need(row, asked.kind, asked.context, asked.batch)
        if loss is None or taken is None:
            undrawn.append(name)
            continue
        simulated = table.rows[i].marked
        candidate = own.get(i)
        points.append(
            Point(
                name,
                replace(taken, overhead=None) if simulated else taken,  # its process held floats
                loss,
                " ".join(filter(None, _said(found.quality, entry))),
                candidate.rank if candidate else None,
                candidate.speed if candidate else None,
                simulated,
                table.rows[i].baseline,
                "" if candidate else found.excluded[name],
            )
        )
    return tuple(points), tuple(undrawn)


def _other(found: Recommendation, table: Table, i: int) -> bool:
    """Whether a row is of another model than the one that is meant."""
    row = table.rows[i]
    return ", ".join(filter(None, (row.model, row.dtype))) != found.model


def _said(column: Column, entry: Entry) -> Iterator[str]:
    plain = replace(entry, notes=())
    yield value_text(column, plain)
    yield printed_unit(column)
    if change := difference_text(plain):
        yield f"({change})"


def loss_of(column: Column, entry: Entry, *, baseline: bool) -> Loss | None:
    """None where it is not known: no number, or none that can be compared with the baseline's."""
    if entry.value is None:
        return None
    if column.from_baseline:
        if column.better == "lower":
            return Loss(entry.value, entry.low, entry.high)
        turned = [None if x is None else 1 - x for x in (entry.value, entry.high, entry.low)]
        return _percent(turned)
    if baseline:
        return Loss(0.0, None, None)
    change = entry.difference
    if change is None:
        return None
    parts = [change.value, change.low, change.high]
    if column.better == "higher":
        parts = [None if x is None else -x for x in (change.value, change.high, change.low)]
    return _percent(parts) if change.kind in ("relative", "points") else _plain(parts)


def _percent(parts: Sequence[float | None]) -> Loss:
    return _plain([None if x is None else 100 * x for x in parts])


def _plain(parts: Sequence[float | None]) -> Loss:
    value, low, high = parts
    assert value is not None
    return Loss(value, low, high)


def _axis(column: Column, table: Table) -> tuple[str, str]:
    """What the axis of losses says, and its unit."""
    if column.from_baseline and column.better == "lower":
        return column.title, column.unit
    if column.from_baseline:
        return f"100% less {column.title}", "%"
    kinds = {d.kind for row in table.rows if (d := row.entries[column.id].difference) is not None}
    unit = "%" if "relative" in kinds else "points" if "points" in kinds else column.unit
    base = next((row.quantization for row in table.rows if row.baseline), "the baseline")
    return f"loss of {column.title} from {base}", unit
