"""A spec as it stands on this machine: its cells, what will happen to each, and what is in the way.

Cells are known by name before their models are here, so that all of them can be listed. Nothing is
downloaded, built or written.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

from qeval.core.artifact import Artifact, ModelRef
from qeval.core.errors import ModelError, QevalError, UsageError
from qeval.data.datasets import DataSource
from qeval.models.endpoint import endpoint_model
from qeval.models.resolve import planned_download, resolve_model
from qeval.plan import preflight
from qeval.plan.cells import Cell, Row, ThisMachine, device_kind, row_cells
from qeval.plan.keys import ModelEntry
from qeval.plan.preflight import Download, Findings, Problem, ask
from qeval.plan.room import Room, build_sizes, keeps_predictions, needs_room, predictions_size
from qeval.plan.spec import Experiment, Quantization, TaskEntry
from qeval.plan.state import State, is_done, skipped, to_build, without_record
from qeval.quant.base import METHODS
from qeval.store.artifacts import ArtifactCache
from qeval.store.references import References
from qeval.store.results import failed_cells, is_meant

if TYPE_CHECKING:
    from qeval.core.record import Record
    from qeval.core.settings import RunSettings
    from qeval.hub.download import Plan


@dataclass(frozen=True)
class Planned:
    """One cell of a spec. ``cell`` is None where its model is not here, or where its row cannot be;
    ``found`` says why."""

    model: ModelEntry
    quantization: Quantization
    task: TaskEntry
    cell: Cell | None
    found: Findings

    @property
    def name(self) -> str:
        return f"{self.row_name} · {self.task.label}"

    @property
    def row_name(self) -> str:
        return f"{self.model.id} · {self.quantization.label}"

    @property
    def engine(self) -> str | None:
        """None where only the model's files tell it."""
        if self.cell:
            return self.cell.row.engine
        asked = self.quantization.engine
        return asked.name if asked else METHODS[self.quantization.method].engine


@dataclass(frozen=True)
class Step:
    """What happens to a cell. ``artifact``: its weights, where they are there."""

    cell: Cell
    state: State
    artifact: Artifact | None = None


@dataclass(frozen=True)
class Survey:
    """``planned``: every cell of the spec, in its order; ``chosen``: what happens to those that are
    asked for."""

    planned: tuple[Planned, ...]
    chosen: tuple[tuple[Planned, State], ...]
    steps: tuple[Step, ...]  # of the chosen cells that are known
    problems: tuple[Problem, ...]
    downloads: tuple[Download, ...]
    experiment: Experiment
    room: Room = field(default_factory=Room)

    @cached_property
    def cells(self) -> list[Cell]:
        """All that are known."""
        return [p.cell for p in self.planned if p.cell]

    def to_do(self, done: Mapping[str, Record]) -> list[Step]:
        """The steps whose cells are not ``done``: another run may have been here since."""
        return [step for step in self.steps if not is_done(step.cell, done)]

    def stays_failed(self, done: Mapping[str, Record]) -> list[Record]:
        """The failures of cells that are not done again."""
        again = {step.cell.key for step in self.to_do(done)}
        left = [cell.key for cell in self.cells if cell.key not in again]
        return failed_cells([done[key] for key in left if key in done])

    def records(self, records: Sequence[Record]) -> list[Record]:
        """Those of these cells, named and ordered as the cells are now, with what was measured of them
        under other conditions; and all builds."""
        here = {cell.key: cell for cell in self.cells}
        elsewhere = {cell.key_anywhere: cell for cell in self.cells if cell.conditions}
        found = []
        for record in records:
            cell = here.get(record.key) or elsewhere.get(record.cell.get("key_anywhere", ""))
            if cell is not None:
                where = record.cell.get("conditions")
                own = {"conditions": where} if where else {}
                planned = without_record(self.experiment, cell.row.quantization, cell.row.engine)
                record = replace(record, cell={**cell.describe(), **own, "planned": planned})
            if cell is not None or record.kind == "build":
                found.append(record)
        return found


def survey(
    experiment: Experiment,
    settings: RunSettings,
    done: Mapping[str, Record],
    *,
    only: Sequence[str] = (),
) -> Survey:
    """Look at everything and change nothing.

    Args:
        only: of these cells, by ``select``; of the others only what is known without asking.

    Raises:
        UsageError: ``only`` fits no cell.
    """
    look = _Look(experiment, settings, DataSource(settings.data_dir, download=False))
    planned = tuple(look.planned())
    wanted = select(planned, only)
    parts, chosen = [], []
    for p in wanted:
        state, found = look.state(p, done)
        chosen.append((p, state))
        parts.append(found)
    devices = [look.device(p) for p in wanted]  # also where all is measured: it is in the keys of some
    room = look.room(chosen)
    space = preflight.space(room, settings.cache_dir)
    for problem in space.problems:
        no_room = State("refused", problem.message)
        chosen = [(p, no_room if needs_room(p.cell, state, room) else state) for p, state in chosen]
    all_found = Findings.union([*devices, *parts, space])
    steps = [
        Step(p.cell, state, None if state.kind == "done" else look.artifact(p.cell.row))
        for p, state in chosen
        if p.cell
    ]
    return Survey(
        planned, tuple(chosen), tuple(steps), all_found.problems, all_found.downloads, experiment, room
    )


def ready(
    experiment: Experiment,
    settings: RunSettings,
    done: Mapping[str, Record],
    *,
    only: Sequence[str] = (),
) -> Survey:
    """A survey that nothing is in the way of: what has to be downloaded first is.

    Raises:
        PreflightError: something is.
        UsageError: as ``survey``.
    """
    found = survey(experiment, settings, done, only=only)
    preflight.refuse(found.problems)
    if found.downloads:
        preflight.fetch(found.downloads)
        found = survey(experiment, settings, done, only=only)
        preflight.refuse(found.problems)
    return found


def select(planned: Sequence[Planned], patterns: Sequence[str]) -> tuple[Planned, ...]:
    """Cells of which any of the patterns is a part of the name (model · quantization · task), or of the
    method's or task's, or matches one of these whole.

    Raises:
        UsageError: no cell is.
    """
    if not patterns:
        return tuple(planned)
    chosen = tuple(p for p in planned if is_meant(patterns, p.name, p.quantization.method, p.task.task))
    if not chosen:
        raise UsageError(
            f"--only {' '.join(patterns)}: no cell has that in its name, such as {planned[0].name!r}"
        )
    return chosen


@dataclass
class _Look:
    """Every question is asked once, however many cells it concerns."""

    experiment: Experiment
    settings: RunSettings
    data: DataSource
    _answers: dict[Hashable, Findings] = field(default_factory=dict)
    _built: dict[str, Artifact | None] = field(default_factory=dict)
    _kept: dict[str, int] = field(default_factory=dict)  # bytes of predictions that will be

    @cached_property
    def cache(self) -> ArtifactCache:
        return ArtifactCache(self.settings.cache_dir)

    @cached_property
    def this_machine(self) -> ThisMachine:
        return ThisMachine(self.experiment.settings, self.settings.cache_dir)

    def once(self, key: Hashable, question: Callable[[], Findings]) -> Findings:
        if key not in self._answers:
            self._answers[key] = question()
        return self._answers[key]

    # What there is

    def planned(self) -> Iterator[Planned]:
        for m, entry in enumerate(self.experiment.models):
            model, found = self.model(entry)
            for q, quantization in enumerate(self.experiment.quantizations):
                cells, own = self.row(entry, model, quantization, (m, q))
                known, unknown = {cell.task_order: cell for cell in cells}, not model or own.problems
                for t, task in enumerate(self.experiment.tasks):
                    cell = known.get(t)
                    if cell is None and not (unknown or own.downloads):
                        continue  # a row that another task added
                    yield Planned(entry, quantization, task, cell, Findings.union([found, own]))

    def model(self, entry: ModelEntry) -> tuple[ModelRef | None, Findings]:
        revision, dtype = entry.revision, entry.dtype or self.experiment.settings.dtype
        try:
            if entry.endpoint is not None:
                name, cache_dir = entry.endpoint.tokenizer, self.settings.cache_dir
                asked = planned_download(name, weights=False) if name else None
                if name and asked and (to_fetch := _to_fetch(asked, name, weights=False)):
                    return None, Findings(downloads=(to_fetch,))
                return endpoint_model(entry.endpoint, entry.id, dtype, cache_dir), Findings()
            if (plan := planned_download(entry.id, revision)) is not None:
                if to_fetch := _to_fetch(plan, entry.id, revision):
                    return None, Findings(downloads=(to_fetch,))
                revision = plan.commit or revision  # the hub need not be asked again
            return (
                resolve_model(
                    entry.id,
                    dtype=dtype,
                    cache_dir=self.settings.cache_dir,
                    revision=revision,
                    trust_remote_code=entry.trust_remote_code,
                ),
                Findings(),
            )
        except QevalError as err:
            return None, Findings(tuple(preflight.problems_of(entry.id, err)))

    def row(
        self,
        entry: ModelEntry,
        model: ModelRef | None,
        quantization: Quantization,
        order: tuple[int, int],
    ) -> tuple[list[Cell], Findings]:
        """The cells of a row; none where it cannot be, or where its model or one that it takes is not
        here."""
        name = f"{entry.id} · {quantization.label}"
        method = METHODS[quantization.method]()
        try:
            downloads = [
                download
                for other, revision in method.models(quantization.options)
                if (planned := planned_download(other, revision))
                and (download := _to_fetch(planned, other, revision))
            ]
            if downloads or model is None:
                return [], Findings(downloads=tuple(downloads))
            where = (order, self.settings.cache_dir, self.this_machine)
            return row_cells(self.experiment, model, quantization, *where), Findings()
        except QevalError as err:
            return [], Findings(tuple(preflight.problems_of(name, err)))

    # What happens to it

    def state(self, p: Planned, done: Mapping[str, Record]) -> tuple[State, Findings]:
        if p.cell is not None and is_done(p.cell, done):
            return State("done"), Findings()
        artifact = self.artifact(p.cell.row) if p.cell else None
        if p.cell is not None and (reason := skipped(p.cell, artifact)):
            return State("skip", reason), Findings()
        found = self.findings(p, artifact)
        if found.problems:
            return State("refused", found.problems[0].message), found
        if found.downloads:
            return State("download"), found
        assert p.cell is not None  # else one of the two says why
        if artifact is None:
            return to_build(p.cell), found
        return State("run" if p.cell.row.artifact else "cached"), found

    def artifact(self, row: Row) -> Artifact | None:
        if row.artifact:
            return row.artifact
        if row.artifact_key not in self._built:
            self._built[row.artifact_key] = self.cache.peek(row.artifact_key)
        return self._built[row.artifact_key]

    def findings(self, p: Planned, artifact: Artifact | None) -> Findings:
        """What is in the way of one cell. A build that is there already needs none of what made it."""
        quantization, task, settings = p.quantization, p.task, self.settings
        parts = [p.found]
        if p.engine:
            ask_engine = partial(preflight.engine, p.engine, settings.cache_dir)
            parts.append(self.once(("engine", p.engine), ask_engine))
            parts.append(self.device(p))
        if artifact is None:
            cache_dir = settings.cache_dir
            ask_method = partial(preflight.method, quantization, cache_dir)
            parts.append(self.once(("method", quantization.label), ask_method))
            reads = self.once(("reads", quantization.label), partial(self.reads, quantization))
            parts.append(reads)
            if p.cell is not None and reads == Findings():
                parts.append(self.build(p.cell.row))
        if p.cell is not None:
            row = replace(p.cell.row, artifact=artifact)
            kind = device_kind(row.engine, settings.engine.device)
            runs = self.once(("row", p.row_name), partial(preflight.row, row, kind))
            parts.append(runs)
            found = p.cell.row.artifact  # a file of somebody else's
            if (
                found is not None
                and found.path.suffix == ".gguf"
                and Findings.union(parts) == Findings()
            ):
                reads_it = partial(preflight.vocabulary, row.name, found.path)
                parts.append(self.once(("vocabulary", found.path), reads_it))
        ask_task = partial(preflight.task, task, self.data, weak_sandbox=settings.weak_sandbox)
        asked = self.once(("task", task.task, repr(task.options)), ask_task)
        parts.append(asked)
        if p.cell is not None and asked == Findings():
            parts.append(self.task_on_model(task, p.cell.row.model))
        return Findings.union(parts)

    def task_on_model(self, task: TaskEntry, model: ModelRef) -> Findings:
        question = partial(preflight.task_on_model, task, model, self.data)
        return self.once(("task", task.task, repr(task.options), model), question)

    def build(self, row: Row) -> Findings:
        cache_dir = self.settings.cache_dir
        question = partial(preflight.build, row.quantization, row.model, self.data, cache_dir)
        return self.once(("build", row.name), question)

    def device(self, p: Planned) -> Findings:
        if not p.engine:
            return Findings()
        asked = self.settings.engine.device
        return self.once(("device", p.engine), partial(preflight.device, p.engine, asked))

    def reads(self, quantization: Quantization) -> Findings:
        """The text that a method calibrates on."""
        chosen = METHODS[quantization.method]().reads(quantization.options)
        if chosen is None:
            return Findings()
        return ask(quantization.label, lambda: self.data.check(chosen.dataset))

    # What it takes

    def room(self, chosen: Sequence[tuple[Planned, State]]) -> Room:
        """Of the builds, and of the predictions that are kept, whose sizes are known before."""
        builds: dict[str, int] = {}
        predictions: dict[str, int] = {}
        for p, state in chosen:
            if p.cell is not None and state.kind == "build":
                builds |= dict(build_sizes(p.cell.row, self.cache))
            if p.cell is not None and state.kind in ("build", "cached", "run"):
                predictions |= self.predictions(p.cell)
        return Room(builds, predictions)

    def predictions(self, cell: Cell) -> dict[str, int]:
        key, settings = cell.reference_key, self.settings
        if key is None or not keeps_predictions(cell, settings.engine.device):
            return {}
        if key not in self._kept:
            there = References(settings.cache_dir).find(key) is not None
            self._kept[key] = 0 if there else predictions_size(cell, self.data) or 0
        return {key: self._kept[key]} if self._kept[key] else {}


def _to_fetch(
    plan: Plan, name: str, revision: str | None = None, *, weights: bool = True
) -> Download | None:
    """What is missing of a hub's model. Raises ModelError where the hub is out of reach."""
    if plan.out_of_reach:
        raise ModelError(plan.out_of_reach)
    if not plan.missing:
        return None
    from qeval.hub.download import download_model

    return Download(str(plan), partial(download_model, name, revision, weights=weights))
