"""The spec that lies beside its results says how they are shown: rows' names, order, the baseline.

Records keep the names of the run that made them. If the spec was edited since then, it wins for the
cells that both have; they are found by what was asked and not by keys, which need the models. Cells
that the spec does not have, or no longer has, come last.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qeval.core.errors import QevalError
from qeval.core.files import write_atomic
from qeval.core.record import Record
from qeval.engines.base import ENGINES
from qeval.plan.spec import Experiment, Quantization, TaskEntry, load_spec
from qeval.plan.state import without_record

SPEC_NAME = "spec.yaml"


def keep(experiment: Experiment, folder: Path) -> None:
    """A copy of the spec beside its results, for whoever reads them later."""
    write_atomic(folder / SPEC_NAME, experiment.text)


def as_kept_spec_says(records: Sequence[Record], folder: Path) -> list[Record]:
    """The records of a results folder, named and ordered by its spec; as they are where it has none
    that this qeval reads (one with another machine's plug-ins)."""
    path = folder / SPEC_NAME
    try:
        experiment = load_spec(path) if path.is_file() else None
    except QevalError:
        experiment = None
    if experiment is None:
        return list(records)
    spec = _Asked(experiment)
    return [spec.applied(record) if record.kind == "eval" else record for record in records]


def named_by(experiment: Experiment) -> Callable[[Record], bool]:
    """Whether a spec has a record's cell: its model, its row and its task. The limit does not count."""
    asked = _Asked(experiment)
    return lambda record: all(asked.places(record))


@dataclass(frozen=True)
class _Place:
    """An entry of the spec, and its place among its kind."""

    entry: Any
    number: int


class _Asked:
    """What a spec asks, to be found again by what a record was asked."""

    def __init__(self, spec: Experiment) -> None:
        self._spec, self._baseline = spec, spec.baseline
        self._models = {
            f"{model.id} {model.dtype or spec.settings.dtype}": _Place(model, i)
            for i, model in enumerate(spec.models)
        }
        self._rows: dict[str, _Place] = {}
        self._tasks: dict[str, _Place] = {}
        self._defaults: dict[str, dict[str, object]] = {}
        for i, q in enumerate(spec.quantizations):
            self._defaults[q.method] = _defaults(q)
            self._rows.setdefault(self._key(q.method, q.described()), _Place(q, i))
        for i, task in enumerate(spec.tasks):
            options = task.options.model_dump(mode="json")
            self._defaults[task.task] = _defaults(task)
            self._tasks.setdefault(self._key(task.task, options), _Place(task, i))

    def places(self, record: Record) -> tuple[_Place | None, _Place | None, _Place | None]:
        """Of its model, its row and its task; None where the spec has none such."""
        cell = record.cell
        asked = [cell.get(part) or {} for part in ("model", "quantization", "task")]
        model = self._models.get(f"{asked[0].get('id')} {asked[0].get('dtype')}")
        row, task = (
            known.get(self._key(str(part.get("name")), part.get("options") or {}))
            for known, part in ((self._rows, asked[1]), (self._tasks, asked[2]))
        )
        return model, row, task

    def applied(self, record: Record) -> Record:
        cell = record.cell
        asked = [cell.get(part) or {} for part in ("model", "quantization", "task")]
        order = list(cell.get("order") or (0, 0, 0))
        model, row, task = self.places(record)
        places: Sequence[tuple[_Place | None, dict[str, _Place]]]
        places = ((model, self._models), (row, self._rows), (task, self._tasks))
        said: dict[str, object] = {
            "order": [
                place.number if place else len(known) + before
                for (place, known), before in zip(places, order, strict=True)
            ]
        }
        if task is not None:
            said["task"] = {**asked[2], "label": task.entry.label}
        if row is not None:
            options = {**(asked[1].get("options") or {}), **_label_option(row.entry)}
            said["quantization"] = {**asked[1], "label": row.entry.label, "options": options}
        said["planned"] = self._planned(model, row, str((cell.get("engine") or {}).get("name")))
        if model is not None and (row is not None or self._baseline is not None):
            said["baseline"] = row is not None and row.entry.label == self._baseline
        return replace(record, cell={**cell, **said})

    def _planned(self, model: _Place | None, row: _Place | None, engine: str) -> dict[str, str]:
        """What happens to the cells of a record's row that have no record."""
        if model is None or row is None or engine not in ENGINES:
            return {}
        return without_record(self._spec, row.entry, engine)

    def _key(self, name: str, options: dict[str, object]) -> str:
        """Options that a record lacks came after it, and have their defaults; a label is a name."""
        whole = {**self._defaults.get(name, {}), **options}
        return json.dumps([name, {k: v for k, v in whole.items() if k != "label"}], sort_keys=True)


def _label_option(entry: Quantization) -> dict[str, object]:
    return {name: value for name, value in entry.described().items() if name == "label"}


def _defaults(entry: Quantization | TaskEntry) -> dict[str, object]:
    fields = type(entry.options).model_fields
    made = type(entry.options).model_construct(
        **{name: None for name, info in fields.items() if info.is_required()}
    )
    found = made.model_dump(mode="json", warnings=False)
    return {name: value for name, value in found.items() if not fields[name].is_required()}
