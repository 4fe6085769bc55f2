"""Rules against results: pass, fail or undecided, for each row and column that a rule means.

What the true number is at least and at most (bounds.py looks at these):

    a change from the baseline   its one-sided 95% bounds (``Difference.at_least``, ``at_most``): a row
                                 whose true change is exactly at the bound passes once in twenty times
    a value                      the ends of its 95% interval: once in forty times
    a speed, a time              the slowest and the fastest repeat
    bytes, bits, a ratio         the number itself

A quality without an interval is undecided. A number that is missing fails, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from qeval.core.errors import UsageError, did_you_mean
from qeval.decide.bounds import Verdict, not_worse, of_change, of_value
from qeval.decide.rules import ALL, CHANGES, EVERY_LOSS, Change, Rule
from qeval.report.columns import select
from qeval.report.compare import MARGINS, Difference, Margins
from qeval.report.format import change_text, printed_unit, value_text
from qeval.report.table import Column, Entry, Table, TableRow

_FAILED = ("failed", "oom", "timeout", "killed", "…")  # of a task without a number; "…": not run yet


@dataclass(frozen=True)
class Check:
    """``number`` as it is printed, with its interval; ``low`` and ``high`` in the column's unit, what
    the verdict looked at. ``reason``: why it is not passed."""

    rule: Rule
    row: str
    what: str
    verdict: Verdict
    number: str = "–"
    value: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""

    @property
    def bound(self) -> str:
        return self.rule.text


@dataclass(frozen=True)
class _Known:
    """A number and what it is at least and at most; None: that is not known."""

    value: float
    low: float | None
    high: float | None
    text: str


def gate(table: Table, rules: Sequence[Rule], margins: Margins = MARGINS) -> list[Check]:
    """
    Args:
        table: of all columns.
        margins: of the loss that is still "not worse".

    Raises:
        UsageError: a rule's row is none of the table's, or its bound is in another unit than its
            column.
    """
    return [
        _check(table, rule, row, column, change, margins)
        for rule in rules
        for row in _rows(table, rule)
        for column, change in _columns(table, rule, row)
    ]


def called(table: Table, row: TableRow) -> str:
    """The row, with its model and dtype where the table has several."""
    parts = [row.model] if len(table.models) > 1 else []
    parts += [row.quantization]
    parts += [row.dtype] if len(table.dtypes_of(row.model)) > 1 else []
    return " · ".join(parts)


def _rows(table: Table, rule: Rule) -> list[TableRow]:
    own = [row for row in table.rows if not row.floor]
    if rule.row.lower() == ALL:
        found = [row for row in own if not row.baseline]
        if not found:
            raise rule.error("the results have no row but the baseline")
        return found
    wanted = rule.row.lower()
    named = [(row, row.quantization.lower()) for row in own]
    found = [row for row, name in named if name == wanted or fnmatchcase(name, wanted)]
    if not found:
        known = [row.quantization for row in own]
        raise rule.error(f"no row is called {rule.row!r}{did_you_mean(rule.row, known)}")
    return found


def _columns(table: Table, rule: Rule, row: TableRow) -> Iterator[tuple[Column | None, Change | None]]:
    """The columns that a rule means for a row. None: there is none. Of a speed, a time or a peak those
    of the places where the row was measured."""
    if rule.column == EVERY_LOSS:
        yield from ((c, "loss" if c.kind == "metric" else None) for c in _losses(table, rule, row))
        return
    columns, change = _named(table, rule)
    if columns and columns[0].place:
        columns = [c for c in columns if row.entries[c.id].value is not None] or columns[:1]
    yield from ((column, change) for column in columns)
    if not columns:
        yield None, change


def _named(table: Table, rule: Rule) -> tuple[list[Column], Change | None]:
    pairs: list[tuple[str, Change | None]] = [(rule.column, "loss" if rule.bound is None else None)]
    pairs += [(rule.column.removesuffix(f"_{c}"), c) for c in CHANGES if rule.column.endswith(f"_{c}")]
    for name, change in pairs:
        try:
            return select(table.columns, [name]), change
        except UsageError:
            continue
    return [], None


def _losses(table: Table, rule: Rule, row: TableRow) -> list[Column]:
    """Every perplexity and share with a difference; and of tasks without a number those that failed."""
    found = [
        c
        for c in table.columns
        if c.kind == "metric" and c.better != "none" and not c.cost
        if {d.kind for r in table.rows if (d := r.entries[c.id].difference)} & {"relative", "points"}
    ]
    failed = [c for c in table.columns if c.kind == "task" and row.entries[c.id].status in _FAILED]
    if not found and not failed:
        raise rule.error("no perplexity or share in these results has a difference from a baseline")
    return [*found, *failed]


def _check(
    table: Table,
    rule: Rule,
    row: TableRow,
    column: Column | None,
    change: Change | None,
    margins: Margins,
) -> Check:
    name = called(table, row)
    if column is None:
        near = did_you_mean(rule.column, {c.name for c in table.columns})
        why = f"no column {rule.column!r} in these results{near if 'mean' in near else ''}"
        return Check(rule, name, rule.column, "fail", reason=why)
    what = f"{column.id} {change}" if change and rule.bound is not None else column.id
    found = _known(table, rule, row, column, change)
    if isinstance(found, str):
        return Check(rule, name, what, "fail", _value(column, row.entries[column.id]), reason=found)
    done = Check(rule, name, what, "undecided", found.text, found.value, found.low, found.high)
    if found.low is None or found.high is None:
        return replace(done, reason="no interval: too few units, or they do not pair")
    if rule.bound is None:
        kind = _kind(row, column)
        margin = {"points": margins.points, "difference": margins.nats or 0.0}
        verdict = not_worse(found.low, found.high, margin.get(kind, margins.relative))
        reason = {"undecided": "the interval reaches over the margin", "fail": "worse"}.get(verdict, "")
        return replace(done, verdict=verdict, reason=reason)
    limit = _limit(rule, row, column, change)
    verdict = rule.bound.verdict(found.low, found.high, limit)
    reason = "the interval reaches over the bound" if verdict == "undecided" else ""
    return replace(done, verdict=verdict, reason=reason)


def _limit(rule: Rule, row: TableRow, column: Column, change: Change | None) -> float:
    assert rule.bound is not None
    try:
        if change is None:
            return of_value(rule.bound, column.unit, column.name)
        return of_change(rule.bound, _kind(row, column), column.unit, column.name)
    except ValueError as err:
        raise rule.error(str(err)) from err


def _kind(row: TableRow, column: Column) -> str:
    change = row.entries[column.id].difference
    if change is not None:
        return change.kind
    return "points" if column.unit in ("share", "%") else "relative"  # of the baseline itself


def _known(
    table: Table, rule: Rule, row: TableRow, column: Column, change: Change | None
) -> _Known | str:
    """The number, or why there is none."""
    entry = row.entries[column.id]
    if entry.value is None:
        return _missing(table, entry)
    if change is None:
        return _of_value(column, entry)
    if row.baseline:
        return _Known(0.0, 0.0, 0.0, "the baseline itself")
    if entry.difference is None:
        said = "; ".join(table.footnotes[n - 1] for n in entry.notes)
        return f"no difference from the baseline{f' ({said})' if said else ''}"
    if change == "loss":
        if column.better == "none":
            raise rule.error(f"{column.name} is neither better nor worse: write _increase or _decrease")
        change = "increase" if column.better == "lower" else "decrease"
    return _turned(_of_change(entry.difference), change)


def _of_value(column: Column, entry: Entry) -> _Known:
    assert entry.value is not None
    low, high = entry.low, entry.high
    if low is None and (column.cost or column.kind in ("memory", "time")):
        low = high = entry.value
    return _Known(entry.value, low, high, _value(column, entry))


def _of_change(change: Difference) -> _Known:
    if change.kind in ("ratio", "time"):
        by = change.value - 1
        return _Known(by, by, by, change_text(change))
    shown = replace(change, low=change.at_least, high=change.at_most)
    return _Known(change.value, change.at_least, change.at_most, change_text(shown))


def _turned(found: _Known, change: Change) -> _Known:
    """As an increase or a decrease; the text stays a signed change."""
    if change == "increase":
        return found
    low, high = found.low, found.high
    return _Known(
        -found.value, None if high is None else -high, None if low is None else -low, found.text
    )


def _value(column: Column, entry: Entry) -> str:
    unit = printed_unit(column) if entry.value is not None else ""
    return f"{value_text(column, replace(entry, notes=()))} {unit}".rstrip()


def _missing(table: Table, entry: Entry) -> str:
    said = "; ".join(table.footnotes[n - 1] for n in entry.notes)
    plain = {"–": "not measured", "…": "not run yet"}.get(entry.status, entry.status)
    return said or plain
