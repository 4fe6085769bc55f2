"""What happens to a cell is decided here alone: runs and `qeval stats` do it, dry runs print it, tables
show it of cells without a record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from qeval.core.artifact import Artifact
from qeval.core.record import Record
from qeval.engines.base import ENGINES
from qeval.plan.cells import Cell
from qeval.plan.spec import Experiment, Quantization, TaskEntry
from qeval.quant.base import METHODS
from qeval.tasks.base import TASKS, needs_of

Kind = Literal["done", "skip", "refused", "download", "build", "cached", "run"]


@dataclass(frozen=True)
class State:
    """``done``: has its record. ``skip``: the engine or the weights have no such number. ``refused``: a
    problem is in the way. Else what is done before it is measured: a ``download``, then maybe a build;
    a ``build``; nothing, since the build is ``cached`` or the weights are there (``run``)."""

    kind: Kind
    reason: str = ""  # of skip and refused; of a build after which the cell may be skipped

    def __str__(self) -> str:
        steps = {"download": "download, run", "build": "build, run", "cached": "cached, run"}
        return steps.get(self.kind, self.kind)


def is_done(cell: Cell, done: Mapping[str, Record]) -> bool:
    record = done.get(cell.key)
    return record is not None and record.settled and not record.asked_again


def why_skipped(
    task: TaskEntry, engine: str, row: Quantization, artifact: Artifact | None
) -> str | None:
    """Why a row's cell has no number; None where it is measured. ``artifact``: its weights, None where
    they are not built yet."""
    if missing := needs_of(TASKS[task.task](), task.options) - ENGINES[engine].capabilities:
        return f"the engine {engine} offers no {', '.join(sorted(missing))}"
    if TASKS[task.task].on_simulated:
        return None
    simulated = "simulated activations or KV cache" if row.running else ""
    if not simulated and (
        artifact.simulated if artifact else METHODS[row.method]().simulates(row.options)
    ):
        simulated = "simulated weights"
    return f"{simulated} run as the float model does: nothing to measure" if simulated else None


def without_record(experiment: Experiment, row: Quantization, engine: str) -> dict[str, str]:
    """Of the cells that a spec has for a row, by the task's title: why they are skipped as far as names
    tell it, or nothing where they are to be run. For tables, which know no model and no machine."""
    return {
        task.title: why_skipped(task, engine, row, None) or ""
        for task in experiment.tasks
        if row.is_for(task.task)
    }


def to_build(cell: Cell) -> State:
    """Of a cell whose weights are not there, and which is not skipped as far as its method knows."""
    row = cell.row.quantization
    unknown = not row.running and METHODS[row.method]().simulates(row.options) is None
    if unknown and not TASKS[cell.task.task].on_simulated:
        return State("build", "skipped if the build gives simulated weights")
    return State("build")


def skipped(cell: Cell, artifact: Artifact | None) -> str | None:
    return why_skipped(cell.task, cell.row.engine, cell.row.quantization, artifact)


def once_built(cell: Cell, state: State, artifact: Artifact | None) -> State:
    """The state when the builds of its row have ended; ``artifact``: None where they failed."""
    if state.kind == "build" and artifact and (reason := skipped(cell, artifact)):
        return State("skip", reason)
    return state
