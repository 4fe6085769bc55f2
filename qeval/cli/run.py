"""`qeval run`: a spec done, or what would be done."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from qeval.api.settings import spec_settings
from qeval.cli.asking import Asked, line_options
from qeval.cli.results.table import print_table
from qeval.cli.shared import FOLDER, QUIET, command, debug, spec_options
from qeval.core.console import echo, say
from qeval.core.errors import OutputError, UsageError, short

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qeval.api.results import Results
    from qeval.core.record import Record
    from qeval.core.settings import RunSettings
    from qeval.jobs.display import Told
    from qeval.plan.spec import Experiment, Parsed
    from qeval.plan.survey import Survey


@command()
@click.argument("spec", metavar="SPEC|MODEL")
@line_options
@click.option("--save", type=FOLDER, metavar="FILE", help="Write the spec of MODEL there, too.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the cells, what is in the way, and the time and disk that it takes; run nothing.",
)
@spec_options
@click.option(
    "--force", is_flag=True, help="Measure again what has a result already; keep the old one, too."
)
@QUIET
@click.option("-v", "--verbose", is_flag=True, help="Say where the log of every job is.")
@click.option("--no-table", is_flag=True, help="Do not print the table at the end.")
def run(
    spec: str,
    results: Path | None,
    dry_run: bool,
    only: tuple[str, ...],
    no_table: bool,
    save: Path | None,
    quiet: bool,
    verbose: bool,
    **over: Any,
) -> None:
    """Quantize and evaluate everything that SPEC names, then print the table.

    SPEC is a .yaml file, or - for standard input. A MODEL in its place (a folder, a .gguf file, or
    ORG/NAME on the hub) is measured with the quantizations and tasks of -q and -t; the spec that this
    makes is kept with the results.

    Cells that already have a result are not done again: run the same command to continue after an
    interruption.

    \b
    Examples:
      qeval run mine.yaml
      qeval run mine.yaml --dry-run
      qeval run Qwen/Qwen2.5-0.5B -q Q4_K_M,gptq:4,awq -t perplexity,humaneval
      qeval run ./model -q rtn:4:g64,nf4 -t perplexity:pydoc --limit 16 --save mine.yaml
    """
    line = ("quantizations", "tasks", "name", "dtype")
    asked = Asked(spec, save=save, **{key: over.pop(key) for key in line})
    how = told(quiet, verbose)
    ended = run_asked(asked, results, dry_run=dry_run, only=only, told=how, debug=debug(), **over)
    print_outcome(ended, table=not no_table)
    sys.exit(ended.exit_code)


def told(quiet: bool, verbose: bool) -> Told:
    """How much is said on standard error. Raises UsageError where both are asked for."""
    if quiet and verbose:
        raise UsageError("--quiet and --verbose: give one of them")
    return "failures" if quiet else "all" if verbose else "usual"


class Outcome(NamedTuple):
    """``results`` are those of the spec's cells; None for a dry run. ``last_line``: what failed, and
    where the logs are; empty where nothing did."""

    exit_code: int
    results: Results | None
    last_line: str = ""


def print_outcome(ended: Outcome, *, table: bool = True) -> None:
    """The table, and what failed."""
    if ended.results is not None and table:
        try:
            print_table(ended.results, "text", {})
        except OutputError as err:
            raise OutputError(f"{err}; what was measured is kept: `qeval table`") from err
    if ended.last_line:
        say(ended.last_line)


def run_spec(path: Path, results: Path | None = None, **how: Any) -> Outcome:
    """``run_asked`` of a spec file."""
    return run_asked(Asked(str(path)), results, **how)


def run_asked(
    asked: Asked,
    results: Path | None = None,
    *,
    dry_run: bool = False,
    only: Sequence[str] = (),
    limit: int | None = None,
    data_dir: Path | None = None,
    cache_dir: Path | None = None,
    device: str | None = None,
    allow_weak_sandbox: bool = False,
    force: bool = False,
    told: Told = "usual",
    debug: bool = False,
) -> Outcome:
    """Plan the spec, do what has no ok record yet, return the results of all its cells. ``debug``
    prints the tracebacks of workers that fail."""
    from qeval.api.running import measure
    from qeval.plan.survey import survey
    from qeval.store.records import Store

    folders = {"data_dir": data_dir, "cache_dir": cache_dir}
    experiment = right(
        asked.parsed(limit=limit, device=device, **folders),
        **folders,
        allow_weak_sandbox=allow_weak_sandbox,
    )
    settings = spec_settings(experiment.settings, **folders, allow_weak_sandbox=allow_weak_sandbox)
    folder = results or Path("results") / experiment.name
    if dry_run:
        done = {} if force else Store(folder).latest()
        found = survey(experiment, settings, done, only=only)
        _print_plan(found, settings, folder)
        if found.problems:
            return Outcome(1, None)
        return outcome(found.stays_failed(done), None, folder)
    measured = measure(experiment, settings, folder, only=only, force=force, told=told, debug=debug)
    return outcome(measured.failed, measured, folder)


def outcome(failed: list[Record], results: Results | None, folder: Path) -> Outcome:
    from qeval.store.results import FAILED, failures_line

    return Outcome(FAILED, results, failures_line(failed, folder)) if failed else Outcome(0, results)


def right(parsed: Parsed, **folders: Any) -> Experiment:
    """The experiment of a spec without errors.

    Raises:
        SpecErrors: it has some; with what else is in the way, as far as the rest of it can be asked.
    """
    from qeval.plan.preflight import refuse_spec
    from qeval.plan.survey import survey

    experiment, errors = parsed
    if errors:
        rest = (
            survey(experiment, spec_settings(experiment.settings, **folders), {})
            if experiment
            else None
        )
        refuse_spec(errors, rest.problems if rest else ())
    assert experiment is not None
    return experiment


def _print_plan(found: Survey, settings: RunSettings, folder: Path) -> None:
    """A line a cell on stdout; on stderr time (by earlier runs of this folder and of those beside it),
    disk, what would be downloaded, and what is in the way."""
    from qeval.forecast.look import cost, records_around
    from qeval.forecast.show import disk_line, to_run
    from qeval.plan.preflight import report

    for planned, state in found.chosen:
        key = planned.cell.key[:12] if planned.cell else "-"
        limit = f" [first {planned.task.limit}]" if planned.task.limit else ""
        reason = f" ({short(state.reason, 80)})" if state.reason else ""
        echo(f"{key:12}  {planned.engine or '-':9} {state!s:13} {planned.name}{limit}{reason}")
    kinds = [state.kind for _, state in found.chosen]
    jobs, disk = cost(found, found.experiment, settings, records_around(folder))
    say(f"{len(kinds)} cells, {kinds.count('done')} done; {to_run(jobs)}")
    say(disk_line(disk))
    for download in found.downloads:
        say(f"to download: {download.what}")
    if found.problems:
        for line in report(found.problems):
            say(line)
