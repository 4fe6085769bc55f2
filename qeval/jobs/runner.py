"""The parent: steps of the plan -> build and eval jobs -> records. The only writer of the store.

A row's artifact is built once (or found in the cache) and serves all its tasks. Whatever happens to a
job becomes a record, and the run continues with the next.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

from qeval.core.artifact import Artifact, ModelRef
from qeval.core.errors import StoreError
from qeval.core.execution import Execution
from qeval.core.files import disk_message
from qeval.core.options import Options
from qeval.core.record import Conditions, MemoryReport, Metric, Record
from qeval.core.settings import RunSettings
from qeval.jobs.executor import Executor
from qeval.jobs.job import Against, Job, JobResult
from qeval.plan.cells import Cell, Row, artifact_key
from qeval.plan.preflight import engine_interpreter, interpreter
from qeval.plan.room import is_live
from qeval.plan.state import once_built
from qeval.plan.survey import Step
from qeval.quant.base import METHODS
from qeval.store.artifacts import ArtifactCache
from qeval.store.records import Store
from qeval.store.references import References


class Listener(Protocol):
    """Told what happens, for progress on the screen."""

    def job_started(self, title: str) -> None: ...
    def job_progress(self, done: int, total: int, unit: str) -> None: ...
    def build_ended(self, record: Record) -> None: ...
    def cell_ended(self, record: Record) -> None: ...


class Runner:
    def __init__(
        self, store: Store, executor: Executor, settings: RunSettings, listener: Listener
    ) -> None:
        self.store = store
        self.executor = executor
        self.settings = settings
        self.listener = listener
        self.cache = ArtifactCache(settings.cache_dir)
        self._no_reference: dict[str, JobResult] = {}  # what failed in this run is not tried again

    def run(self, steps: Sequence[Step]) -> list[Record]:
        """Do what the plan says, row by row; the new records. Call with the store locked.

        Raises:
            StoreError: the results or the cache cannot be written (what is done stays done).
        """
        records = []
        for row, group in itertools.groupby(steps, key=lambda step: step.cell.row):
            records += self._run_row(row, list(group))
        return records

    def _run_row(self, row: Row, steps: list[Step]) -> list[Record]:
        failure: _BuildFailed | None = None
        artifact = steps[0].artifact
        if any(step.state.kind in ("build", "cached") for step in steps):
            try:
                q = row.quantization
                artifact = self._artifact(row.model, q.method, q.options, q.label)
            except _BuildFailed as err:
                failure = err
        return [self._finish(self._outcome(step, artifact, failure)) for step in steps]

    def _outcome(self, step: Step, artifact: Artifact | None, failure: _BuildFailed | None) -> Record:
        cell, state = step.cell, once_built(step.cell, step.state, artifact)
        if state.kind == "skip":
            made = _made(artifact, cell) if artifact else None
            return Record(
                "eval", cell.key, cell.describe(), "skipped", artifact=made, error=state.reason
            )
        if failure is not None or artifact is None:
            status = failure.status if failure else "failed"
            return Record(
                "eval",
                cell.key,
                cell.describe(),
                status,
                error=f"build failed: {failure}",
                log=failure.log if failure else None,
            )
        return self._evaluate(cell, artifact)

    def _finish(self, record: Record) -> Record:
        self.store.append(record)
        self.listener.cell_ended(record)
        return record

    def _artifact(self, model: ModelRef, name: str, options: Options, label: str) -> Artifact:
        """The artifact from the cache, or built now, after the one it is made from.

        Raises:
            _BuildFailed: with the status and reason to record for every cell of the row.
        """
        method = METHODS[name]()
        key = artifact_key(model, name, options)
        if cached := self.cache.load(key):
            return cached
        base = None
        if (base_options := method.base(options, model.dtype)) is not None:
            parent = method.Options.model_validate(base_options)
            base = self._artifact(model, name, parent, method.label(parent))
        with self.cache.building(key) as out:
            if cached := self.cache.load(key):  # another run built it while this one waited
                return cached
            job = Job(
                kind="build",
                key=key,
                title=f"{model.id} · {label} · build",
                model=model,
                name=name,
                options=options.model_dump(mode="json"),
                out=out.resolve(),
                artifact=base,
                python=interpreter(method, options, self.settings.cache_dir),
                **self._common(model, Execution()),
            )
            return self._build(job, label)

    def _build(self, job: Job, label: str) -> Artifact:
        result = self._run(job, self.settings.build_timeout)
        cell = {
            "model": {"id": job.model.id, "identity": job.model.identity, "dtype": job.model.dtype},
            "quantization": {"name": job.name, "label": label, "options": job.options},
        }
        record = _record("build", job.key, cell, result, self.store.folder)
        artifact = None
        if result.status == "ok":
            built = Artifact.from_json(result.payload)
            artifact = self.cache.publish(job.key, job.out, built, cell)
        self.store.append(record)
        self.listener.build_ended(record)
        if artifact is None:
            raise _BuildFailed(result, record.log)
        return artifact

    def _evaluate(self, cell: Cell, artifact: Artifact) -> Record:
        out = self.store.folder / "cells" / cell.key[:16]
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise StoreError(disk_message(out, err)) from err
        job = Job(
            kind="eval",
            key=cell.key,
            title=cell.name,
            model=cell.row.model,
            name=cell.task.task,
            options=cell.task.options.model_dump(mode="json"),
            out=out.resolve(),
            artifact=replace(artifact, engine=cell.row.engine),
            limit=cell.task.limit,
            weak_sandbox=self.settings.weak_sandbox,
            python=engine_interpreter(cell.row.engine, self.settings.cache_dir),
            **self._common(cell.row.model, cell.row.quantization.execution),
        )
        against, failed = self._against(cell)
        result = failed or self._run(replace(job, against=against), cell.task.timeout)
        made = _made(artifact, cell)
        return _record("eval", cell.key, cell.describe(), result, self.store.folder, made)

    def _against(self, cell: Cell) -> tuple[Against | None, JobResult | None]:
        """What the cell's row is compared with, its predictions computed if they are not there yet; or
        why that failed."""
        base, key = cell.baseline, cell.reference_key
        if base is None or key is None:
            return None, None
        try:
            q = base.quantization
            found = base.artifact or self._artifact(base.model, q.method, q.options, q.label)
            made = replace(found, engine=base.engine)
        except _BuildFailed as err:
            return None, JobResult("failed", f"the baseline's build failed: {err}", log=err.log)
        against = Against(made, q.execution)
        if is_live(cell, self.settings.engine.device):
            return against, None
        if key in self._no_reference:
            return None, self._no_reference[key]
        if References(self.settings.cache_dir).find(key) is None:
            job = Job(
                kind="reference",
                key=key,
                title=f"{base.name} · predictions for {cell.task.label}",
                model=base.model,
                name=cell.task.task,
                options=cell.task.options.model_dump(mode="json"),
                out=self.store.folder.resolve(),
                artifact=made,
                limit=cell.task.limit,
                python=engine_interpreter(base.engine, self.settings.cache_dir),
                **self._common(base.model, q.execution),
            )
            result = self._run(job, cell.task.timeout)
            if result.status != "ok":
                error = f"the baseline's predictions: {result.error}"
                self._no_reference[key] = replace(result, error=error, payload={})
                return None, self._no_reference[key]
        return replace(against, reference=key), None

    def _common(self, model: ModelRef, execution: Execution) -> dict[str, Any]:
        s = self.settings
        engine = replace(
            s.engine,
            dtype=model.dtype,
            trust_remote_code=model.trust_remote_code,
            execution=execution,
        )
        return {"cache_dir": s.cache_dir, "data_dir": s.data_dir, "settings": engine}

    def _run(self, job: Job, timeout: float | None) -> JobResult:
        self.listener.job_started(job.title)
        return self.executor.run(job, timeout, self.listener.job_progress)


class _BuildFailed(Exception):
    def __init__(self, result: JobResult, log: str | None) -> None:
        super().__init__(result.error)
        self.status = result.status
        self.log = log


def _made(artifact: Artifact, cell: Cell) -> dict[str, object]:
    """What a record keeps of the weights, and of how they ran."""
    made = artifact.summary()
    running = cell.row.quantization.execution.to_json()
    return {**made, "details": made["details"] | ({"execution": running} if running else {})}


def _record(
    kind: Literal["build", "eval"],
    key: str,
    cell: dict[str, object],
    result: JobResult,
    folder: Path,
    artifact: dict[str, Any] | None = None,
) -> Record:
    """A worker's result as a record; paths of files become relative to the results folder."""
    found, root = result.payload if kind == "eval" else {}, folder.resolve()
    files = {name: _inside(path, root) for name, path in found.get("files", {}).items()}
    return Record(
        kind=kind,
        key=key,
        cell=cell,
        status=result.status,
        metrics=tuple(Metric(**m) for m in found.get("metrics", ())),
        memory=MemoryReport(**result.memory) if result.memory else None,
        artifact=artifact,
        notes=(*(artifact["notes"] if artifact else ()), *found.get("notes", ())),
        files=files,
        timing=result.timing,
        conditions=Conditions(**result.conditions) if result.conditions else None,
        provenance=result.provenance,
        error=result.error,
        log=_inside(result.log, root) if result.log else None,
    )


def _inside(path: str, root: Path) -> str:
    """Relative to the results folder, if it is inside."""
    return str(Path(path).relative_to(root)) if Path(path).is_relative_to(root) else path
