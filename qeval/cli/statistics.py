"""The parent's part of `qeval stats`: a model in, a worker's statistics out (torch-free)."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from qeval.core.console import say
from qeval.core.errors import EngineError, StoreError, UsageError
from qeval.core.execution import Execution
from qeval.core.files import disk_message, real_path
from qeval.core.options import Options
from qeval.core.settings import EngineSettings, default_cache_dir
from qeval.data.datasets import DataSource
from qeval.engines.base import ENGINES
from qeval.formats.describe import describe_folder
from qeval.models.resolve import resolve_model
from qeval.plan import preflight
from qeval.plan.cells import content_key
from qeval.run.display import Bar
from qeval.run.executor import LocalExecutor
from qeval.run.jobs import Job
from qeval.tasks.base import TASKS
from qeval.tensor_stats.rows import Statistics, read

TASK = "tensor_stats"


@dataclass(frozen=True)
class How:
    """What every model of one call is measured with. ``options`` are the task's."""

    options: dict[str, object]
    limit: int | None
    settings: EngineSettings
    data_dir: Path | None
    cache_dir: Path | None


def statistics(model: str, how: How, save: Path | None = None) -> Statistics:
    """Those of a model folder or hub id, measured in a worker; ``save`` keeps their file. A file that
    was saved (``.jsonl``) is read.

    Raises:
        UsageError: an option is impossible, or the model's engine cannot show its tensors.
        PreflightError: the machine lacks something.
        QevalError: the model or the text is not there; a file cannot be written; what the worker says.
    """
    if Path(model).suffix == ".jsonl":
        return read(Path(model))
    with tempfile.TemporaryDirectory(prefix="qeval-stats-") as folder:
        job = _job(model, how, Path(folder))
        say(f"{job.title} ...")
        with Bar() as bar:
            result = LocalExecutor(job.out / "jobs").run(job, None, bar.update)
        if result.status != "ok":
            raise EngineError(f"{model}: {result.error}")
        for note in result.payload["notes"]:
            say(note)
        file = Path(result.payload["files"]["layers"])
        if save is not None:
            try:
                shutil.copyfile(file, save)
            except OSError as err:
                raise StoreError(disk_message(save.parent, err)) from err
        return read(file)


def _job(model: str, how: How, out: Path) -> Job:
    options = _options(how.options)
    cache = real_path(how.cache_dir or default_cache_dir())
    settings = how.settings
    source = DataSource(how.data_dir)
    ref = resolve_model(
        model, dtype=settings.dtype, cache_dir=cache, trust_remote_code=settings.trust_remote_code
    )
    artifact = describe_folder(ref.path, ref.dtype)
    task, engine = TASKS[TASK](), ENGINES[artifact.engine]
    if missing := task.needs - engine.capabilities:
        raise UsageError(
            f"{model}: the engine {artifact.engine} offers no {', '.join(missing)}: give the float "
            "model's folder, or a packed one that transformers loads"
        )
    kind = preflight.device_kind(artifact.engine, settings.device)
    found = preflight.Findings.union(
        (
            preflight.engine(artifact.engine),
            preflight.device(artifact.engine, settings.device),
            preflight.artifact(model, artifact, ref, Execution(), kind),
            preflight.ask(
                task.label(options), lambda: task.preflight(options, source, weak_sandbox=False)
            ),
        )
    )
    preflight.refuse(found.problems)
    data = source.data_dir
    return Job(
        kind="eval",
        key=content_key({"stats": ref.identity}),
        title=f"{model} · {task.label(options)}",
        model=ref,
        name=TASK,
        options=options.model_dump(mode="json"),
        out=out.resolve(),
        cache_dir=cache,
        data_dir=real_path(data) if data else None,
        settings=settings,
        artifact=artifact,
        limit=how.limit,
    )


def _options(given: dict[str, object]) -> Options:
    try:
        return TASKS[TASK].Options.model_validate(given)
    except ValidationError as err:
        first = err.errors()[0]
        name = str(first["loc"][0]).replace("_", "-")
        raise UsageError(f"--{name}: {first['msg'].removeprefix('Value error, ')}") from err
