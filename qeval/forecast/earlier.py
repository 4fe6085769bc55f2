"""What earlier runs tell of a planned one: the same task, of the same model or of one like it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pydantic import ValidationError

from qeval.core.artifact import ModelRef
from qeval.core.errors import QevalError
from qeval.core.record import Metric, Record
from qeval.models.told import vocabulary_sha256
from qeval.plan.spec import Quantization, TaskEntry
from qeval.report.row_records import RowRecords, baselines, kept, names, sources, task_id
from qeval.tasks.base import TASKS

Kin = Literal["this model", "a model with the same tokenizer", "another model"]
KIN: tuple[Kin, ...] = ("this model", "a model with the same tokenizer", "another model")


@dataclass(frozen=True)
class Asked:
    """A model of the spec. ``ref``: None where it is not here."""

    id: str
    ref: ModelRef | None

    @cached_property
    def vocabulary(self) -> str | None:
        return vocabulary_sha256(self.ref) if self.ref else None

    def kin(self, record: Record) -> Kin:
        model = record.cell.get("model") or {}
        if self.ref is not None and self.ref.identity == model.get("identity"):
            return KIN[0]
        if self.ref is None and self.id == model.get("id"):
            return KIN[0]
        theirs = record.provenance.get("tokenizer_sha256")
        return KIN[1] if theirs and theirs == self.vocabulary else KIN[2]


@dataclass(frozen=True)
class Found:
    """A row's number in an earlier run, and its baseline's where that was measured there."""

    row: str  # as it is called
    key: str  # of its quantization
    record: Record
    base: Record | None
    floor: bool  # or the baseline's weights in another engine: no quantization

    def metric(self, name: str) -> Metric | None:
        return _metric(self.record, name)

    def base_metric(self, name: str) -> Metric | None:
        return _metric(self.base, name) if self.base else None


class Earlier:
    def __init__(self, records: Sequence[Record]) -> None:
        """Of results folders that are there, as their specs name and order them."""
        self.builds = {r.key: r for r in records if r.kind == "build" and r.status == "ok"}
        self._rows: list[RowRecords] = sources(kept(records))
        self._bases, self._names = baselines(self._rows), names(self._rows)

    def of(self, task: TaskEntry) -> Iterator[Found]:
        """Every row's numbers of a task with these options, whatever its limit."""
        for i, row in enumerate(self._rows):
            base = self._bases[i]
            for records in row.by_task.values():
                if records[-1].status == "ok" and asks(records[-1], task):
                    theirs = (
                        [] if base is None else self._rows[base].by_task.get(task_id(records[-1]), [])
                    )
                    measured = [r for r in theirs if r.status == "ok"]
                    yield Found(
                        self._names[i][1],
                        quantization_key(row.quantization),
                        records[-1],
                        measured[-1] if measured else None,
                        bool(row.floor) or row.twin,
                    )


def nearest(found: Iterable[Found], model: Asked) -> tuple[Kin, list[Found]]:
    """Those of the model itself, else of its family, else of all others."""
    by_kin: dict[Kin, list[Found]] = {}
    for one in found:
        by_kin.setdefault(model.kin(one.record), []).append(one)
    for kin in KIN:
        if kin in by_kin:
            return kin, by_kin[kin]
    return KIN[-1], []


def asks(record: Record, task: TaskEntry) -> bool:
    """Whether a record's task has the options that decide its number (but for the limit)."""
    asked: dict[str, Any] = record.cell.get("task") or {}
    if asked.get("name") != task.task:
        return False
    try:
        options = TASKS[task.task].Options.model_validate(asked.get("options") or {})
        return options.identity() == task.options.identity()
    except (ValidationError, QevalError):  # of another version
        return False


def quantization_key(asked: dict[str, Any]) -> str:
    """What a row is, without its label."""
    options = {k: v for k, v in (asked.get("options") or {}).items() if k != "label"}
    return json.dumps([asked.get("name"), options], sort_keys=True)


def planned_key(row: Quantization) -> str:
    return quantization_key({"name": row.method, "options": row.described()})


def _metric(record: Record, name: str) -> Metric | None:
    return next((m for m in record.metrics if m.name == name), None)
