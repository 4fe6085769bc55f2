"""What a row costs: stored bytes from its artifact, peaks from one task's processes, times.

Peaks are comparable only if every row did the same work, so that those of a model at one place
(places.py) all come from one task, the one with the lowest ``MemoryReport.rank``. Rows that were not
asked to do that task there (another results folder has them) show those of a task that they did.
Simulated rows have no peak of their own: their process held float weights. Nor have rows with rounded
activations or KV cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from qeval.core.record import Record
from qeval.report.places import Place, host_of, place_of
from qeval.report.row_records import RowRecords, age

ACCOUNTED = frozenset({"bpw", "bpw_file", "size", "weights", "embeddings"})
"""Facts of a simulated row that say what packed storage would take."""

_PEAKS = ("vram_allocated", "vram_reserved", "vram_process", "ram_peak")


@dataclass
class Costs:
    """Of one row. ``facts``: by the column's name, and by where it was measured where that counts.
    ``tasks``: whose processes the peaks of a place come from, and those of the model's other rows."""

    facts: dict[tuple[str, Place | None], float] = field(default_factory=dict)
    tasks: dict[Place, tuple[str, str]] = field(default_factory=dict)

    def add(self, name: str, place: Place | None, value: float | None) -> None:
        """The first of a name and place stays."""
        if value is not None:
            self.facts.setdefault((name, place), value)

    def peaks_at(self, place: Place) -> bool:
        return any((name, place) in self.facts for name in _PEAKS)


def accounted(row: RowRecords, name: str) -> bool:
    """Whether the fact ``name`` of a row is what packed storage would take, not what it took."""
    if name == "kv_cache":
        return "kv_cache" in row.low_bits
    return row.simulated and name in ACCOUNTED


def costs(rows: Sequence[RowRecords]) -> list[Costs]:
    places: dict[tuple[str, Place], list[Record]] = {}
    for row in rows:
        for record in row.evals:
            places.setdefault((row.identity, place_of(record)), []).append(record)
    usual = {place: _task(records) for place, records in places.items()}
    models: dict[str, list[Record]] = {}
    for (model, _), records in places.items():
        models.setdefault(model, []).extend(records)
    main = {model: _task(records) for model, records in models.items()}
    found = [_row_costs(row, usual, main[row.identity]) for row in rows]
    contexts = {
        row.identity: one.facts["context", None]
        for row, one in zip(rows, found, strict=True)
        if ("context", None) in one.facts
    }
    for row, one in zip(rows, found, strict=True):
        _add_cache(row, one, contexts.get(row.identity))
    return found


def _row_costs(row: RowRecords, usual: Mapping[tuple[str, Place], str], main: str) -> Costs:
    """``main``: the task whose context the KV cache of the model's rows is for, where they have it."""
    found = Costs()
    _add_stored(row, found)
    places = dict.fromkeys(place_of(record) for record in row.evals)
    for place in sorted(places, key=lambda place: usual[row.identity, place] != main):
        _add_peaks(row, found, place, usual[row.identity, place])
    _add_times(row, found)
    return found


def _add_peaks(row: RowRecords, found: Costs, place: Place, usual: str) -> None:
    """From the newest record of the task that the model's rows have at this place; else, if this row
    was not even to have it, of one that it has."""
    records = [record for record in row.evals if place_of(record) == place]
    failed = [record for record in row.evals if record.status != "ok"]
    meant = any(_label(record) == usual for record in (*records, *failed))
    own = usual if meant or row.costs_as_float else _task(records)
    for record in _newest_first(records):
        if record.memory and record.status == "ok" and _label(record) == own:
            found.tasks[place] = (own, usual)
            found.add("kv_cache", None, record.memory.kv_cache)
            found.add("context", None, record.memory.context)
            for name in () if row.costs_as_float else _PEAKS:
                found.add(name, place, getattr(record.memory, name))


def _task(records: Iterable[Record]) -> str:
    """Label of the task that says most about memory, of those, the one that most records have."""
    counts: dict[tuple[float, str], int] = {}
    for record in records:
        if record.status == "ok" and record.memory is not None:
            rank = record.memory.rank
            place = (math.inf if rank is None else rank, _label(record))
            counts[place] = counts.get(place, 0) + 1
    best = min(counts, key=lambda place: (place[0], -counts[place]), default=(0, ""))
    return best[1]


def _label(record: Record) -> str:
    task = record.cell.get("task") or {}
    return str(task.get("label") or task.get("name", "?"))


def _newest_first(records: Iterable[Record]) -> Iterator[Record]:
    yield from sorted(records, key=age, reverse=True)


def _add_stored(row: RowRecords, found: Costs) -> None:
    made = row.artifact
    weights, embeddings = made.get("weight_bytes"), made.get("embedding_bytes")
    found.add("bpw", None, made.get("bpw"))
    found.add("bpw_file", None, made.get("bpw_file"))
    found.add("size", None, None if weights is None else weights + (embeddings or 0))
    found.add("weights", None, weights)
    found.add("embeddings", None, embeddings)


def _add_cache(row: RowRecords, found: Costs, context: float | None) -> None:
    """The KV cache of a row that skips the task of the peaks, from what another task reports: it grows
    with the context, so it must fit those of the model's other rows."""
    if not row.costs_as_float or ("context", None) in found.facts:
        return
    for record in row.evals:
        memory = record.memory
        if record.status == "ok" and memory and memory.kv_cache and memory.context:
            wanted = context or memory.context
            found.add("kv_cache", None, memory.kv_cache * wanted / memory.context)
            found.add("context", None, wanted)


def _add_times(row: RowRecords, found: Costs) -> None:
    """By host: a row's tasks and its build may use other devices of it."""
    for build in _newest_first(row.builds):
        found.add("build_s", host_of(build), build.timing.get("build_s"))
        if build.memory is not None:
            found.add("build_vram", host_of(build), build.memory.vram_process)
            found.add("build_ram", host_of(build), build.memory.ram_peak)
    walls: dict[Place, float] = {}
    for record in _newest_of_each(row.evals):
        if record.timing.get("wall_s") is not None:
            host = host_of(record)
            walls[host] = walls.get(host, 0.0) + record.timing["wall_s"]
    for host, seconds in walls.items():
        found.add("wall_s", host, seconds)


def _newest_of_each(records: Iterable[Record]) -> Iterator[Record]:
    """One record a cell and host, where several folders hold it."""
    known = set()
    for record in _newest_first(records):
        if (record.key, host_of(record)) not in known:
            known.add((record.key, host_of(record)))
            yield record
