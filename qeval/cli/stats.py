"""`qeval stats`: which layers quantization will hurt."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qeval.api.settings import run_settings
from qeval.cli.shared import FOLDER, FORMATS, QUIET_Q, command
from qeval.core.console import echo, say
from qeval.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qeval.core.record import Record
    from qeval.core.settings import RunSettings
    from qeval.jobs.display import Bar
    from qeval.plan.keys import Dtype, ModelEntry
    from qeval.plan.spec import Experiment, TaskEntry
    from qeval.tensor_stats.rows import Statistics

BITS = click.IntRange(2, 8)
TASK = "tensor_stats"
DTYPES = ("float32", "float16", "bfloat16")
KINDS = ("weight", "input", "key", "value")  # tensor_stats/rows.py has both; a test compares
STATISTICS = ("absmax", "std", "kurtosis", "outlier", "sqnr")


@command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL [MODEL]")
@click.option("--dataset", default="pydoc", show_default=True, help="`qeval data list`, or file:PATH.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=8, show_default=True, help="First N windows."
)
@click.option(
    "--seq-len", type=click.IntRange(min=2), help="Tokens of a window [default: 2048, or the model's]."
)
@click.option("--weight-bits", type=BITS, default=4, show_default=True, help="Of the weights' SQNR.")
@click.option(
    "--group-size",
    type=int,
    default=-1,
    show_default=True,
    help="Weights' inputs that share a scale; -1: all.",
)
@click.option("--activation-bits", type=BITS, default=8, show_default=True, help="Of the inputs' SQNR.")
@click.option("--kv-bits", type=BITS, default=4, show_default=True, help="Of keys' and values' SQNR.")
@click.option(
    "--dtype", type=click.Choice(DTYPES), default="bfloat16", show_default=True, help="Of the model."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--data-dir", type=FOLDER, help="Datasets on disk [default: QEVAL_DATA_DIR].")
@click.option("--cache-dir", type=FOLDER, help="[default: QEVAL_CACHE_DIR, ~/.cache/qeval].")
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the model.")
@click.option("--format", "fmt", type=FORMATS, default="text", show_default=True)
@click.option(
    "--kind", "kinds", type=click.Choice(KINDS), multiple=True, help="Only these tensors (repeat)."
)
@click.option(
    "--sort", type=click.Choice(STATISTICS), help="The worst first; of two models what moved."
)
@click.option("--top", type=click.IntRange(min=1), help="First N tensors.")
@click.option("--png", type=FOLDER, help="Draw layers x tensors, coloured by --sort [default: sqnr].")
@click.option(
    "--save", type=FOLDER, help="Keep the statistics: a .jsonl that stands for the model later."
)
@QUIET_Q
def stats(models: tuple[str, ...], **options: Any) -> None:
    """Statistics of every layer's weights, inputs, keys and values: which will quantization hurt?

    MODEL is a model folder, a hub id, or a .jsonl that --save kept (or that a run left in its cells).
    Two models, such as a float model and its quantized version, are shown side by side.

    \b
    Examples:
      qeval stats ./model --sort sqnr --top 20
      qeval stats ./model ./quantized
      qeval stats ./model --png layers.png
    """
    echo(model_statistics(models, **options), end="")


def model_statistics(
    models: Sequence[str],
    *,
    fmt: str,
    kinds: Sequence[str],
    sort: str | None,
    top: int | None,
    png: Path | None,
    save: Path | None,
    limit: int,
    dtype: Dtype,
    device: str,
    data_dir: Path | None,
    cache_dir: Path | None,
    trust_remote_code: bool,
    quiet: bool = False,
    **options: object,
) -> str:
    """The table of one model or of two. ``options`` are those of the task tensor_stats.

    Raises:
        UsageError: no such device; more than two models; a picture or a file of two; no matplotlib
            for a picture.
    """
    from qeval.core.devices import device_name
    from qeval.core.extras import require
    from qeval.core.settings import EngineSettings
    from qeval.plan.keys import ModelEntry
    from qeval.tensor_stats.layers import lines, render

    try:
        device_name(device)
    except ValueError as err:
        raise UsageError(f"--device {device}: {err}") from err
    if len(models) > 2:
        raise UsageError("qeval stats: give one model, or two to compare")
    if len(models) == 2 and (png or save):
        raise UsageError(f"qeval stats: {'--png' if png else '--save'} is for one model")
    if png:
        require("plot", "matplotlib")
    settings = run_settings(EngineSettings(device), cache_dir, data_dir)
    task = _task(options, limit)
    found = []
    for model in models:
        entry = ModelEntry(id=model or ".", dtype=dtype, trust_remote_code=trust_remote_code)
        found.append(_statistics(entry, task, settings, save, quiet))
    if png:
        from qeval.tensor_stats.heat_map import draw

        draw(png, found[0], sort or "sqnr")
        say(f"wrote {png}")
    return render(fmt, found, lines(found, kinds=kinds, sort=sort, top=top), sort)


def _statistics(
    model: ModelEntry, task: TaskEntry, settings: RunSettings, save: Path | None, quiet: bool
) -> Statistics:
    """Those of a model folder or hub id, measured as a run of this one cell would; ``save`` keeps their
    file. A file that was saved (``.jsonl``) is read.

    Raises:
        UsageError: the model's engine cannot show its tensors.
        PreflightError: the machine lacks something, or the model or the text is not there.
        EngineError: what the worker says.
        StoreError: the file cannot be written.
    """
    from tempfile import TemporaryDirectory

    from qeval.core.errors import EngineError, StoreError
    from qeval.core.files import disk_message
    from qeval.jobs.display import Bar
    from qeval.jobs.executor import LocalExecutor
    from qeval.jobs.runner import Runner
    from qeval.plan.survey import ready
    from qeval.store.records import Store
    from qeval.tensor_stats.rows import read

    if Path(model.id).suffix == ".jsonl":
        return read(Path(model.id))
    found = ready(_experiment(model, task, settings), settings, {})
    for step in found.steps:
        if step.state.kind == "skip":
            raise UsageError(
                f"{model.id}: {step.state.reason}: give the float model's folder, or a packed one that "
                "transformers loads"
            )
    with TemporaryDirectory(prefix="qeval-stats-") as temporary:
        folder = Path(temporary)
        if not quiet:
            say(f"{model.id} · {task.label} ...")
        with Bar(quiet) as bar, LocalExecutor(folder / "jobs") as executor:
            [record] = Runner(Store(folder), executor, settings, _Quiet(bar)).run(found.steps)
        if record.status != "ok":
            raise EngineError(f"{model.id}: {record.error}")
        for note in record.notes:
            say(note)
        file = folder / record.files["layers"]
        if save is not None:
            try:
                shutil.copyfile(file, save)
            except OSError as err:
                raise StoreError(disk_message(save.parent, err)) from err
        return read(file)


class _Quiet:
    """A Listener for Runner: the progress of its only job."""

    def __init__(self, bar: Bar) -> None:
        self.job_progress = bar.update

    def job_started(self, title: str) -> None: ...
    def build_ended(self, record: Record) -> None: ...
    def cell_ended(self, record: Record) -> None: ...


def _experiment(model: ModelEntry, task: TaskEntry, settings: RunSettings) -> Experiment:
    """The spec of this one cell."""
    from qeval.plan.keys import Spec
    from qeval.plan.spec import Experiment, Quantization
    from qeval.quant.base import METHODS

    spec = Spec(
        name="stats",
        models=[model.id],
        quantizations=["none"],
        tasks=[TASK],
        device=settings.engine.device,
    )
    none = Quantization("none", METHODS["none"].Options(), "none")
    return Experiment(spec.name, (model,), (none,), (task,), None, spec, "")


def _task(given: dict[str, Any], limit: int) -> TaskEntry:
    from pydantic import ValidationError

    from qeval.plan.spec import TaskEntry
    from qeval.tasks.base import TASKS

    task = TASKS[TASK]()
    try:
        options = task.Options.model_validate(given)
    except ValidationError as err:
        first = err.errors()[0]
        name = str(first["loc"][0]).replace("_", "-")
        raise UsageError(f"--{name}: {first['msg'].removeprefix('Value error, ')}") from err
    return TaskEntry(TASK, options, task.label(options), limit, timeout=None)
