"""What a run will leave in the cache: quantized models, and the baseline's predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qeval.core.errors import QevalError
from qeval.core.units import human_bytes
from qeval.engines.base import environment_of
from qeval.models.told import told_vocabulary
from qeval.models.weights import read_tensors
from qeval.plan.cells import Cell, Row, artifact_key, device_kind
from qeval.plan.state import State
from qeval.quant.base import METHODS
from qeval.store.artifacts import ArtifactCache
from qeval.store.references import CODE_BYTES
from qeval.tasks.base import TASKS, expected

if TYPE_CHECKING:
    from qeval.data.datasets import DataSource


@dataclass(frozen=True)
class Room:
    """Bytes at the least, by the key of each artifact and of each baseline's predictions."""

    builds: Mapping[str, int] = field(default_factory=dict)
    predictions: Mapping[str, int] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        return sum(self.builds.values()) + sum(self.predictions.values())

    @property
    def what(self) -> str:
        """``3 builds``, ``2 builds and the baseline's predictions (1.2 GiB)``; empty where it is
        nothing."""
        n = len(self.builds)
        builds = f"{n} build" + "s" * (n != 1) if n else ""
        size = human_bytes(sum(self.predictions.values()))
        kept = f"the baseline's predictions ({size})" if self.predictions else ""
        return " and ".join(part for part in (builds, kept) if part)


def needs_room(cell: Cell | None, state: State, room: Room) -> bool:
    """Whether what happens to a cell is stopped by a full cache."""
    if state.kind == "build":
        return True
    doing = state.kind in ("cached", "run")
    return doing and cell is not None and cell.reference_key in room.predictions


def build_sizes(row: Row, cache: ArtifactCache) -> Iterator[tuple[str, int]]:
    """The artifacts that a row's build writes, by key: at the least so many bytes."""
    model, name, options = row.model, row.quantization.method, row.quantization.options
    if not model.path.is_dir():
        return
    method, n_weights = METHODS[name](), _n_weights(model.path)
    yield row.artifact_key, int(n_weights * method.weight_bits(options, model.dtype) / 8)
    if (base := method.base(options, model.dtype)) is not None:
        parent = method.Options.model_validate(base)
        key = artifact_key(model, name, parent)
        if cache.peek(key) is None:
            yield key, int(n_weights * method.weight_bits(parent, model.dtype) / 8)


def _n_weights(folder: Path) -> int:
    return sum(tensor.n_elements for tensor in read_tensors(folder))


def is_live(cell: Cell, device: str) -> bool:
    """Whether a row and its baseline run side by side: as the task's option says; by itself on a GPU,
    whose predictions come faster than a disk takes them. Never in two environments at once."""
    asked = getattr(cell.task.options, "baseline_from", "cache")
    if asked != "auto":
        return bool(asked == "live")
    engines = {cell.row.engine, cell.baseline.engine if cell.baseline else cell.row.engine}
    if len(engines) > 1 and any(environment_of(engine) for engine in engines):
        return False
    return device_kind(cell.row.engine, device) == "cuda"


def keeps_predictions(cell: Cell, device: str) -> bool:
    return cell.baseline is not None and not is_live(cell, device)


def predictions_size(cell: Cell, data: DataSource) -> int | None:
    """Bytes of the baseline's predictions of a cell's text; None where only the run can tell."""
    task, model = cell.task, cell.row.model
    try:
        found = expected(TASKS[task.task](), task.options, task.limit, model, data)
        vocabulary = told_vocabulary(model)
    except QevalError:  # the checks of the task say so
        return None
    if found.predicted is None or vocabulary is None:
        return None
    return CODE_BYTES * found.predicted * vocabulary
