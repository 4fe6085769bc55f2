"""`qeval run`: a spec done, or what would be done."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qeval.cli.shared import FOLDER, command, debug
from qeval.cli.table import print_table
from qeval.core.console import echo, say, warn
from qeval.core.errors import OutputError, short

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qeval.core.record import Record
    from qeval.core.settings import RunSettings
    from qeval.plan.spec import Experiment
    from qeval.plan.survey import Survey


@command()
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
    outcome = run_spec(spec, results, dry_run=dry_run, only=only, debug=debug(), **over)
    if outcome.records is not None and not no_table:
        try:
            print_table(outcome.records, "text", {})
        except OutputError as err:
            raise OutputError(f"{err}; what was measured is kept: `qeval table`") from err
    if outcome.last_line:
        say(outcome.last_line)
    sys.exit(outcome.exit_code)


@dataclass(frozen=True)
class Outcome:
    """``records`` are those of the spec's cells; None for a dry run. ``last_line``: what failed, and
    where the logs are; empty where nothing did."""

    exit_code: int
    records: list[Record] | None
    last_line: str = ""


def run_spec(
    path: Path,
    results: Path | None = None,
    *,
    dry_run: bool = False,
    only: Sequence[str] = (),
    limit: int | None = None,
    data_dir: Path | None = None,
    cache_dir: Path | None = None,
    device: str | None = None,
    allow_weak_sandbox: bool = False,
    debug: bool = False,
) -> Outcome:
    """Plan the spec, do what has no ok record yet, return the records of all its cells. ``debug``
    prints the tracebacks of workers that fail."""
    from qeval.plan.kept_spec import keep
    from qeval.plan.preflight import fetch, refuse
    from qeval.plan.spec import load_spec
    from qeval.plan.state import is_done
    from qeval.plan.survey import survey
    from qeval.run.display import Progress
    from qeval.run.executor import LocalExecutor
    from qeval.run.runner import Runner
    from qeval.store.records import Store
    from qeval.store.results import FAILED, failed_cells, failures_line

    overrides = {"limit": limit, "device": device}
    experiment = load_spec(path, {k: v for k, v in overrides.items() if v is not None})
    settings = _settings(experiment, data_dir, cache_dir, allow_weak_sandbox)
    store = Store(results or Path("results") / experiment.name)
    found = survey(experiment, settings, store.latest(), only=only)
    if dry_run:
        _print_plan(found)
        return Outcome(1 if found.problems else 0, None)
    refuse(found.problems)
    if found.downloads:
        fetch(found.downloads)
        found = survey(experiment, settings, store.latest(), only=only)
        refuse(found.problems)
    with store.lock():
        keep(experiment, store.folder)
        done = store.latest()
        pending = [cell for cell in found.chosen_cells if not is_done(cell, done)]
        n = len(found.chosen_cells)
        say(f"{n - len(pending)} of {n} cells are done in {store.folder}")
        with Progress(len(pending), store.folder if debug else None) as progress:
            executor = LocalExecutor(store.folder.resolve() / "jobs")
            Runner(store, executor, settings, progress).run(pending)
        records = found.records(store.read())
        warn(store.warnings)
    keys = {cell.key for cell in found.cells}
    failed = failed_cells([r for r in records if r.key in keys])  # not what failed elsewhere
    return (
        Outcome(FAILED, records, failures_line(failed, store.folder)) if failed else Outcome(0, records)
    )


def _settings(
    experiment: Experiment, data_dir: Path | None, cache_dir: Path | None, weak: bool
) -> RunSettings:
    from qeval.core.files import real_path
    from qeval.core.settings import EngineSettings, RunSettings, default_cache_dir
    from qeval.data.datasets import DataSource

    spec = experiment.settings
    engine = EngineSettings(
        device=spec.device, batch_size=spec.batch_size, n_threads=spec.n_threads
    )  # dtype and trust_remote_code are each model's own
    cache = cache_dir or (Path(spec.cache_dir) if spec.cache_dir else default_cache_dir())
    data = data_dir or (Path(spec.data_dir) if spec.data_dir else None)
    found = DataSource(data).data_dir  # QEVAL_DATA_DIR where neither is given
    return RunSettings(
        cache_dir=real_path(cache),
        data_dir=real_path(found) if found else None,
        engine=engine,
        build_timeout=spec.timeout,
        weak_sandbox=weak,
    )


def _print_plan(found: Survey) -> None:
    """A line a cell on stdout; on stderr what would be downloaded, and what is in the way."""
    from qeval.plan.preflight import report

    for planned, state in zip(found.chosen, found.states, strict=True):
        key = planned.cell.key[:12] if planned.cell else "-"
        limit = f" [first {planned.task.limit}]" if planned.task.limit else ""
        reason = f" ({short(state.reason, 80)})" if state.reason else ""
        echo(f"{key:12}  {planned.engine or '-':9} {state!s:13} {planned.name}{limit}{reason}")
    kinds = [state.kind for state in found.states]
    say(f"{len(kinds)} cells, {kinds.count('done')} done")
    for download in found.downloads:
        say(f"to download: {download.what}")
    if found.problems:
        for line in report(found.problems):
            say(line)
