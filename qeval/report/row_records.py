"""Which records make which row: one row a quantized model, models together, in the spec's order.

Several results folders may hold the same cell. What is equal in all is taken once; what was measured
more than once stays, so that the newest can be shown and the others named.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from qeval.core.errors import UsageError, did_you_mean
from qeval.core.execution import KEYS
from qeval.core.record import Record
from qeval.report.columns import metric_column
from qeval.store.records import latest

_FOUND = ("none", "checkpoint")  # methods whose weights are there already, in whatever format
_FAR = 10**9  # where a cell without "order" is sorted to
_FOLDER = 10**6  # added to the order of each folder after the first


@dataclass
class RowRecords:
    """The records that one row is made from; ``evals`` is never empty."""

    evals: list[Record] = field(default_factory=list)
    builds: list[Record] = field(default_factory=list)
    baseline: bool = False

    @cached_property
    def by_task(self) -> dict[str, list[Record]]:
        found: dict[str, list[Record]] = {}
        for record in self.evals:
            found.setdefault(task_id(record), []).append(record)
        return found

    @cached_property
    def model(self) -> dict[str, object]:
        return self.evals[0].cell.get("model") or {}

    @cached_property
    def dtype(self) -> str:
        """Of the float model; "" for a .gguf file and a server, which have their own."""
        gguf = self.model.get("gguf") or str(self.model.get("id")).endswith(".gguf")  # as 0.1.0 told it
        served = str(self.model.get("identity")).startswith("endpoint:")
        return "" if gguf or served else str(self.model.get("dtype", "?"))

    @cached_property
    def quantization(self) -> dict[str, Any]:
        return self.evals[0].cell.get("quantization") or {}

    @cached_property
    def engine(self) -> str:
        return str((self.evals[0].cell.get("engine") or {}).get("name", "?"))

    @cached_property
    def identity(self) -> str:
        return str(self.model.get("identity") or self.model.get("id"))

    @cached_property
    def artifact(self) -> dict[str, Any]:
        made = [r.artifact for r in (*self.evals, *self.builds) if r.artifact]
        return made[0] if made else {}

    @property
    def simulated(self) -> bool:
        return bool(self.artifact.get("simulated"))

    @cached_property
    def low_bits(self) -> frozenset[str]:
        """``activations`` and ``kv_cache`` where the row has them rounded."""
        return frozenset(KEYS.keys() & (self.quantization.get("options") or {}).keys()) - {"floor"}

    @property
    def names(self) -> set[str]:
        """What the row can be called by: its label, its method."""
        return {_label(self), str(self.quantization.get("name"))}

    @cached_property
    def planned(self) -> dict[str, str] | None:
        """Of its cells without a record, by the task's title, why they are skipped, or nothing where
        they are to be run, as the specs of its folders have it; None where one has no spec."""
        found = [record.cell.get("planned") for record in self.evals]
        known = [planned for planned in found if planned is not None]
        if len(known) < len(found):
            return None
        return {title: reason for planned in known for title, reason in planned.items()}

    @property
    def floor(self) -> str:
        """What the row is a floor for, if it is one: ``rounding``, ``repetition`` or ``engine``."""
        return str(self.quantization.get("floor") or "")

    @property
    def twin(self) -> bool:
        """Whether it is the baseline's weights in another engine."""
        return bool(self.quantization.get("twin"))

    @property
    def costs_as_float(self) -> bool:
        """Whether its process took the memory and time of more bits than its label says."""
        return self.simulated or bool(self.low_bits) or bool(self.floor)

    def order(self, axis: int) -> int:
        return min(order(record, axis) for record in self.evals)


def kept(records: Iterable[Record]) -> list[Record]:
    """Of each folder and key the newest number, else the newest failure; of several folders, copies
    once, and no failure of what another folder has measured. The first folder's order goes first."""
    folders: dict[str, list[Record]] = {}
    for record in records:
        folders.setdefault(record.folder, []).append(record)
    found = [
        _moved(record, i * _FOLDER)
        for i, inside in enumerate(folders.values())
        for record in _without_outdated(list(latest(inside).values()))
    ]
    return found if len(folders) < 2 else _merged(found)


def _without_outdated(records: list[Record]) -> list[Record]:
    """Without numbers of 0.1.0, which kept no conditions, that the same folder has again with them."""
    if all(r.conditions for r in records) or not any(r.conditions for r in records):
        return records
    known = {name for r in records if r.conditions and r.status == "ok" for name in _numbers(r)}
    return [r for r in records if r.conditions or not r.metrics or not known.issuperset(_numbers(r))]


def _numbers(record: Record) -> Iterator[tuple[str, str]]:
    """What names a record's numbers in a table, whatever options and versions gave them."""
    row = _row_key(record.cell)
    for metric in record.metrics:
        yield row, metric_column(metric, record.cell.get("limit")).id


def _merged(records: Sequence[Record]) -> list[Record]:
    """Copies once; of a key without any number the newest failure."""
    measured = {record.key for record in records if record.status == "ok"}
    failures: dict[str, Record] = {}
    for record in sorted(records, key=age):
        if record.key not in measured:
            failures[record.key] = record
    known: set[object] = set()
    found = []
    for record in records:
        copy = (record.kind, record.key, age(record), record.metrics)
        if record.status == "ok" and copy not in known:
            known.add(copy)
            found.append(record)
        elif failures.get(record.key) is record:
            found.append(record)
    return found


def age(record: Record) -> float:
    """When it was done, in seconds since 1970; 0 where that is unknown."""
    return record.timing.get("end") or 0.0


def sources(records: Sequence[Record]) -> list[RowRecords]:
    """One source a row, sorted as the spec has them, else by appearance."""
    found: dict[str, RowRecords] = {}
    for record in records:
        if record.kind == "eval":
            found.setdefault(_row_key(record.cell), RowRecords()).evals.append(record)
    builds: dict[str, list[Record]] = {}
    for record in records:
        if record.kind == "build":
            builds.setdefault(_build_key(record.cell), []).append(record)
    places: dict[str, int] = {}
    for source in found.values():
        source.builds = builds.get(_build_key(source.evals[0].cell), [])
        places[source.identity] = min(source.order(0), places.get(source.identity, _FAR))
    _mark_baselines(found.values())
    appeared = {identity: i for i, identity in enumerate(places)}
    return sorted(found.values(), key=lambda s: (places[s.identity], appeared[s.identity], s.order(1)))


def _mark_baselines(rows: Iterable[RowRecords]) -> None:
    """One a model and dtype: where folders name several, that of the first folder."""
    first: dict[tuple[str, object], tuple[int, RowRecords]] = {}
    for row in rows:
        named = [order(r, 1) for r in row.evals if r.cell.get("baseline")]
        place = (row.identity, row.model.get("dtype"))
        if named and (place not in first or min(named) < first[place][0]):
            first[place] = (min(named), row)
    for _, row in first.values():
        row.baseline = True


def choose_baselines(rows: Sequence[RowRecords], name: str) -> None:
    """Make the rows called ``name`` (as shown, by the spec's label, or by method) the baselines.

    Raises:
        UsageError: no row is.
    """
    wanted, words = name.lower(), set()
    chosen: dict[tuple[str, object], RowRecords] = {}
    for by_label in (True, False):
        for row, (_, shown) in zip(rows, names(rows), strict=True):
            called = {shown, _given_label(row)} if by_label else {str(row.quantization.get("name"))}
            words |= called
            if wanted in {word.lower() for word in called}:
                chosen.setdefault((row.identity, row.model.get("dtype")), row)
    if not chosen:
        raise UsageError(f"--baseline: no row is called {name!r}{did_you_mean(name, words)}")
    for row in rows:
        row.baseline = any(row is one for one in chosen.values())


def _moved(record: Record, by: int) -> Record:
    if not by or not record.cell.get("order"):
        return record
    return replace(record, cell={**record.cell, "order": [by + n for n in record.cell["order"]]})


def baselines(rows: Sequence[RowRecords]) -> list[int | None]:
    """For each row the index of the one it is compared with: its model's baseline, with the same
    dtype where there is one; None for a baseline and where the model has none."""
    found: dict[tuple[str, object], int] = {}
    for i, row in enumerate(rows):
        if row.baseline:
            found.setdefault((row.identity, None), i)
            found.setdefault((row.identity, row.model.get("dtype")), i)
    out: list[int | None] = []
    for row in rows:
        near = found.get((row.identity, row.model.get("dtype")), found.get((row.identity, None)))
        out.append(None if row.baseline else near)
    return out


def names(rows: Sequence[RowRecords]) -> list[tuple[str, str]]:
    """Model and quantization as shown. Names that are alike get what makes them differ: the
    model's commit or the start of its content hash, the engine."""
    contents: dict[str, set[str]] = {}
    alike: dict[tuple[str, object, str], int] = {}
    for row in rows:
        contents.setdefault(_model_name(row), set()).add(row.identity)
        key = (row.identity, row.model.get("dtype"), _label(row))
        alike[key] = alike.get(key, 0) + 1
    out = []
    for row in rows:
        model, label = _model_name(row), _label(row)
        twin = alike[(row.identity, row.model.get("dtype"), label)] > 1
        several = len(contents[model]) > 1
        out.append(
            (
                f"{model} ({_content(row.identity)})" if several else model,
                f"{label} ({row.engine})" if twin else label,
            )
        )
    return out


def _content(identity: str) -> str:
    """``@`` and the start of the commit of a hub's model, else the start of the hash."""
    kind, _, name = identity.partition(":")
    return f"@{name.rpartition('@')[2][:12]}" if kind == "hub" else identity[:20]


def order(record: Record, axis: int) -> int:
    """Place of a record's model (0), quantization (1) or task (2) in its spec."""
    places = record.cell.get("order") or ()
    return int(places[axis]) if len(places) > axis else _FAR


def task_id(record: Record) -> str:
    task = record.cell.get("task") or {}
    parts = [task.get("name"), task.get("options"), record.cell.get("limit")]
    return json.dumps(parts, sort_keys=True)


def _model_name(row: RowRecords) -> str:
    return str(row.model.get("id", "?"))


def _label(row: RowRecords) -> str:
    """The spec's label; with the format in which weights were found, where no method of qeval made
    them and the label does not say it: ``model-AWQ (AWQ W4A16g128)``, ``none (GPTQ W4A16g128)``."""
    label = _given_label(row)
    if row.quantization.get("name") not in _FOUND:
        return label
    details = row.artifact.get("details") or {}
    found = str((details.get("format") or {}).get("label") or details.get("type") or "")
    return f"{label} ({found})" if found.lower() not in label.lower() else label


def _given_label(row: RowRecords) -> str:
    return str(row.quantization.get("label") or row.quantization.get("name", "?"))


def _row_key(cell: dict[str, object]) -> str:
    return json.dumps([*_parts(cell), cell.get("engine")], sort_keys=True)


def _build_key(cell: dict[str, Any]) -> str:
    """One build serves all rows that differ only in how its weights run."""
    options = (cell.get("quantization") or {}).get("options") or {}
    made = {k: v for k, v in options.items() if k not in KEYS}
    return json.dumps([*_parts(cell)[:-1], made], sort_keys=True)


def _parts(cell: dict[str, Any]) -> list[object]:
    model, quantization = cell.get("model") or {}, cell.get("quantization") or {}
    identity = model.get("identity") or model.get("id")
    return [identity, model.get("dtype"), quantization.get("name"), quantization.get("options")]
