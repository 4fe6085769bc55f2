"""What is compared: rows of two sides, side by side, with the cells that both have.

A side is a row of some results, all rows of a folder, or what one version of qeval measured: the
records whose provenance has this version, or a git commit that begins like this (of the checkout of
qeval, which an installed wheel does not have).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from qeval.core.errors import UsageError, did_you_mean
from qeval.core.record import Record
from qeval.report.columns import memory_columns
from qeval.report.draft import Draft, draft_of
from qeval.report.fill import FoundCell
from qeval.report.row_records import RowRecords, names
from qeval.report.table import Column

_COMMIT = re.compile(r"[0-9a-f]{7,40}")
_Found = tuple[Column, FoundCell]
_Same = Callable[["SideRow", "SideRow"], bool]


@dataclass(frozen=True)
class SideRow:
    """One row of a side. ``cells``: by the column's id without its place, at each place that it was
    measured at; ``costs``: bytes and bits likewise."""

    model: str
    label: str
    records: RowRecords
    cells: dict[str, list[_Found]] = field(repr=False)
    costs: dict[str, list[tuple[Column, float]]] = field(repr=False)

    @property
    def name(self) -> str:
        return f"{self.model} · {self.label}"


def rows_of(records: Iterable[Record]) -> list[SideRow]:
    """All rows but the floors, named as in their table."""
    return rows_of_draft(draft_of(records))


def rows_of_draft(draft: Draft) -> list[SideRow]:
    shown = names(draft.rows)
    return [
        SideRow(*shown[i], row, _cells(draft, i), _costs(draft, i))
        for i, row in enumerate(draft.rows)
        if not row.floor
    ]


def pairs_of_rows(rows: Sequence[SideRow], a: str, b: str) -> list[tuple[SideRow, SideRow]]:
    """The rows called ``a`` and ``b`` of every model that has both.

    Raises:
        UsageError: there is none, or a method is that of several rows.
    """
    found = []
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if row.model == model]
        one, other = _called(own, a), _called(own, b)
        if one and other:
            found.append((one, other))
    if not found:
        known = {row.label for row in rows}
        for name in (a, b):
            if not any(_called([row], name) for row in rows):
                raise UsageError(f"no row is called {name!r}{did_you_mean(name, known)}")
        raise UsageError(f"no model has both rows, {a!r} and {b!r}")
    return found


def pairs_of_sides(
    ours: Sequence[SideRow], theirs: Sequence[SideRow]
) -> tuple[list[tuple[SideRow, SideRow]], list[SideRow], list[SideRow]]:
    """Rows with the same label, engine and dtype: of the same model content; else of a model with the
    same name; else, where either side has one model, of these. And the rows that only one side has."""
    found, left = [], list(theirs)
    for one in ours:
        for same in _samenesses(ours, theirs):
            other = next((row for row in left if _key(row) == _key(one) and same(one, row)), None)
            if other is not None:
                found.append((one, other))
                left.remove(other)
                break
    paired = [id(one) for one, _ in found]
    return found, [row for row in ours if id(row) not in paired], left


def is_version(text: str) -> bool:
    """Whether this may be a version of qeval or the start of a commit."""
    return bool(_COMMIT.fullmatch(text) or re.fullmatch(r"v?\d+(\.\d+)+\w*", text))


def of_version(records: Iterable[Record], version: str) -> list[Record]:
    """What this version of qeval, or this commit of its checkout, measured; older numbers of the same
    cell among them.

    Raises:
        UsageError: it measured nothing, or several commits begin like this.
    """
    records = list(records)
    commits = {str(r.provenance.get("git_commit") or "") for r in records} - {""}
    fitting = sorted(c for c in commits if _COMMIT.fullmatch(version) and c.startswith(version))
    if len(fitting) > 1:
        raise UsageError(f"{version}: {len(fitting)} commits begin like this: give more of one")
    wanted = version.removeprefix("v")
    versions = {str(r.provenance.get("qeval") or "") for r in records} - {""}
    found = [
        r
        for r in records
        if (fitting and r.provenance.get("git_commit") == fitting[0])
        or r.provenance.get("qeval") == wanted
    ]
    if not found:
        known = ", ".join([*sorted(versions), *(c[:12] for c in sorted(commits))]) or "none"
        raise UsageError(f"no record is of qeval {version}: these results were measured by {known}")
    return found


def _samenesses(ours: Sequence[SideRow], theirs: Sequence[SideRow]) -> Iterator[_Same]:
    yield lambda one, other: one.records.identity == other.records.identity
    yield lambda one, other: one.records.model.get("id") == other.records.model.get("id")
    if len({row.model for row in ours}) == 1 and len({row.model for row in theirs}) == 1:
        yield lambda one, other: True


def _key(row: SideRow) -> tuple[str, str, str]:
    given = row.records.quantization
    return str(given.get("label") or given.get("name")), row.records.engine, row.records.dtype


def _called(rows: Sequence[SideRow], name: str) -> SideRow | None:
    wanted = name.lower()
    by_label = [row for row in rows if wanted in (row.label.lower(), row.name.lower())]
    by_label += [r for r in rows if wanted == str(r.records.quantization.get("label")).lower()]
    by_method = [row for row in rows if wanted == str(row.records.quantization.get("name")).lower()]
    found = by_label or by_method
    if not by_label and len(found) > 1:
        labels = ", ".join(repr(row.label) for row in found[:4])
        raise UsageError(f"{len(found)} rows are of the method {name!r}: give one of {labels}")
    return found[0] if found else None


def _cells(draft: Draft, i: int) -> dict[str, list[_Found]]:
    found: dict[str, list[_Found]] = {}
    for name, cell in draft.cells[i].items():
        column = draft.columns[name].column
        if cell is not None:
            found.setdefault(_anywhere(column).id, []).append((column, cell))
    return found


def _costs(draft: Draft, i: int) -> dict[str, list[tuple[Column, float]]]:
    found: dict[str, list[tuple[Column, float]]] = {}
    facts = draft.costs[i].facts
    for column in memory_columns([facts], draft.places, every=True):
        value = facts.get((column.name, column.place))
        if value is not None:
            found.setdefault(column.name, []).append((column, value))
    return found


def _anywhere(column: Column) -> Column:
    return replace(column, place=None, where="")
