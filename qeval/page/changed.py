"""Problems that changed sides from each row's baseline to the row, with what both wrote and the test.

Completions are cut, and the page has only so many: what a model wrote may be of any length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qeval.comparison.compare import flips_of
from qeval.comparison.flips import Flip, Flips, Kept
from qeval.comparison.sides import SideRow, rows_of_draft
from qeval.core.errors import QevalError
from qeval.core.record import Record
from qeval.data.datasets import DataSource
from qeval.report.draft import Draft
from qeval.report.row_records import baselines
from qeval.store.samples import Answer
from qeval.tasks.coding.samples import LOADERS, benchmark

LONGEST = 8_000  # characters of one completion
MOST = 1_500_000  # characters of all
LISTED = 300  # flips of one row and task


@dataclass(frozen=True)
class Told:
    """``completion``: as far as the page has it. ``left_out``: characters that it has not."""

    completion: str
    verdict: str
    sample: int
    detail: str
    left_out: int


@dataclass(frozen=True)
class Changed:
    """A problem. ``share_a``, ``share_b``: of its samples that passed. None: nothing is kept."""

    unit: str
    direction: str
    share_a: float
    share_b: float
    a: Told | None
    b: Told | None


@dataclass(frozen=True)
class Sides:
    """Of one row and task, against ``baseline``; ``p``: McNemar's exact test. ``unlisted``: flips that
    are not in ``flips``. ``benchmark``: of its problems, "" where their tests are not here."""

    model: str
    row: str
    baseline: str
    task: str
    n: int
    lost: int
    gained: int
    p: float | None
    flips: tuple[Changed, ...]
    unlisted: int
    benchmark: str


@dataclass(frozen=True)
class AllSides:
    """``tests``: by benchmark and problem, those of the flips that are listed."""

    sides: tuple[Sides, ...]
    tests: Mapping[str, Mapping[str, str]]


def changed(draft: Draft) -> AllSides:
    whole = [i for i, row in enumerate(draft.rows) if not row.floor]
    rows = dict(zip(whole, rows_of_draft(draft), strict=True))
    room, known, found = _Room(MOST), _Tests(), []
    read: Kept = {}
    for i, base in enumerate(baselines(draft.rows)):
        if base is None or i not in rows:
            continue
        for flips in flips_of(rows[base], rows[i], read):
            if flips.n:
                found.append(_sides(rows[base], rows[i], flips, room, known))
    return AllSides(tuple(found), known.used)


def _sides(a: SideRow, b: SideRow, flips: Flips, room: _Room, known: _Tests) -> Sides:
    listed = flips.flips[:LISTED]
    name = known.of(_record(b, flips.task), [flip.unit for flip in listed])
    return Sides(
        b.model,
        b.label,
        a.label,
        flips.task,
        flips.n,
        len(flips.lost),
        len(flips.gained),
        flips.p,
        tuple(_changed(flip, room) for flip in listed),
        len(flips.flips) - len(listed),
        name,
    )


def _changed(flip: Flip, room: _Room) -> Changed:
    a, b = room.told(flip.a), room.told(flip.b)
    return Changed(flip.unit, flip.direction, flip.share_a, flip.share_b, a, b)


def _record(row: SideRow, task: str) -> Record | None:
    labelled = (r for r in row.records.evals if (r.cell.get("task") or {}).get("label") == task)
    return next((r for r in labelled if r.status == "ok"), None)


class _Room:
    """What is left of the characters that a page may have."""

    def __init__(self, characters: int) -> None:
        self.left = characters

    def told(self, answer: Answer | None) -> Told | None:
        if answer is None:
            return None
        shown = answer.completion[: min(LONGEST, self.left)]
        self.left -= len(shown)
        left_out = len(answer.completion) - len(shown)
        return Told(shown, answer.verdict, answer.sample, answer.detail[:500], left_out)


class _Tests:
    """Of benchmarks that are on this machine, where a record was judged by the same problems."""

    def __init__(self) -> None:
        self.used: dict[str, dict[str, str]] = {}
        self._known: dict[str, tuple[str, Mapping[str, str]]] = {}

    def of(self, record: Record | None, units: Sequence[str]) -> str:
        """The benchmark's name; "" where its tests are not here."""
        name = _benchmark(record)
        if record is None or not name or not units:
            return ""
        if name not in self._known:
            self._known[name] = _tests(name)
        sha256, tests = self._known[name]
        if sha256 != record.provenance.get("problems_sha256"):
            return ""
        self.used.setdefault(name, {}).update({u: tests[u] for u in units if u in tests})
        return name


def _benchmark(record: Record | None) -> str:
    """By its protocol's first part."""
    protocol = record.metrics[0].protocol if record and record.metrics else ""
    name = protocol.partition("/")[0]
    return name if name in LOADERS else ""


def _tests(name: str) -> tuple[str, Mapping[str, str]]:
    try:
        found = benchmark(name, DataSource(offline=True, download=False))
    except QevalError:
        return "", {}
    return found.sha256, {task: problem.test[:LONGEST] for task, problem in found.problems.items()}
