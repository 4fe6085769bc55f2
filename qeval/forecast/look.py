"""The forecast of a spec: what every column will show, and what is left to do."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qeval.core.errors import QevalError, StoreError
from qeval.core.record import Record
from qeval.core.settings import RunSettings
from qeval.data.datasets import DataSource
from qeval.forecast.cost import Disk, Jobs, disk, jobs
from qeval.forecast.earlier import Asked, Earlier, planned_key
from qeval.forecast.power import Column, Wish, columns
from qeval.plan.cells import ThisMachine
from qeval.plan.spec import Experiment, TaskEntry
from qeval.plan.survey import Planned, Survey
from qeval.report.places import Place, place_asked
from qeval.store.records import read_many
from qeval.tasks.base import TASKS, Expected, expected


@dataclass(frozen=True)
class Forecast:
    columns: tuple[Column, ...]
    jobs: tuple[Jobs, ...]
    disk: Disk
    wishes: tuple[Wish, ...]
    n_earlier: int  # records that were read


def forecast(
    found: Survey,
    experiment: Experiment,
    settings: RunSettings,
    records: Sequence[Record],
    wishes: Sequence[Wish] = (),
) -> Forecast:
    """``records``: of earlier runs, as their specs name and order them. Nothing is downloaded."""
    look = _Look(found, settings, ThisMachine(experiment.settings, settings.cache_dir))
    earlier = Earlier(records)
    every: list[Column] = []
    tasks = {(p.model.id, _key(p.task), p.task.limit): p for p, _ in found.chosen}
    for p in tasks.values():
        both = look.expected(p, p.task.limit), look.expected(p, None)
        every += columns(p.task, look.asked(p), both, earlier, look.rows(p.task))
    left = look.jobs(earlier)
    where = disk(found, settings.cache_dir)
    return Forecast(tuple(every), tuple(left), where, tuple(wishes), len(records))


def cost(
    found: Survey, experiment: Experiment, settings: RunSettings, records: Sequence[Record]
) -> tuple[list[Jobs], Disk]:
    """The part of a forecast that a dry run tells."""
    look = _Look(found, settings, ThisMachine(experiment.settings, settings.cache_dir))
    return look.jobs(Earlier(records)), disk(found, settings.cache_dir)


def records_around(folder: Path) -> list[Record]:
    """Those of a results folder and of the folders beside it, as far as they can be read."""
    found: list[Record] = []
    for path in sorted(folder.parent.glob("*/records.jsonl")):
        with suppress(StoreError, OSError):
            found += read_many([path.parent])[0]
    return found


class _Look:
    """Every question is asked once."""

    def __init__(self, found: Survey, settings: RunSettings, conditions: ThisMachine) -> None:
        self._found, self._conditions = found, conditions
        self._data = DataSource(settings.data_dir, download=False)
        self._models: dict[str, Asked] = {}
        self._expected: dict[tuple[str, str, int | None], Expected] = {}

    def jobs(self, earlier: Earlier) -> list[Jobs]:
        return jobs(self._found, earlier, self.asked, self.units, self.place)

    def asked(self, p: Planned) -> Asked:
        """The model, by a cell of it that is known."""
        if p.model.id not in self._models:
            same = (q.cell for q in self._found.planned if q.model.id == p.model.id)
            cell = next((cell for cell in same if cell is not None), None)
            self._models[p.model.id] = Asked(p.model.id, cell.row.model if cell else None)
        return self._models[p.model.id]

    def expected(self, p: Planned, limit: int | None) -> Expected:
        key = (p.model.id, _key(p.task), limit)
        if key not in self._expected:
            task, ref = TASKS[p.task.task](), self.asked(p).ref
            try:
                self._expected[key] = expected(task, p.task.options, limit, ref, self._data)
            except QevalError:  # a problem, or a download, of the survey
                self._expected[key] = Expected()
        return self._expected[key]

    def units(self, p: Planned) -> int | None:
        return self.expected(p, p.task.limit).n

    def place(self, engine: str) -> Place:
        return place_asked(self._conditions.conditions(engine))

    def rows(self, task: TaskEntry) -> frozenset[str]:
        """Keys of the quantizations that the task will measure."""
        return frozenset(planned_key(p.quantization) for p, _ in self._found.chosen if p.task == task)


def _key(task: TaskEntry) -> str:
    return f"{task.task} {task.options!r}"
