"""`qeval plan`: what a spec will be able to show, and what it will take."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from qeval.api.settings import spec_settings
from qeval.cli.asking import Asked, line_options
from qeval.cli.run import outcome, right
from qeval.cli.shared import FOLDER, command, spec_options
from qeval.core.console import echo, say, warn


@command()
@click.argument("spec", metavar="SPEC|MODEL")
@click.argument("earlier", type=FOLDER, nargs=-1, metavar="[RESULTS]...")
@click.option(
    "--detect",
    multiple=True,
    metavar="DIFFERENCE",
    help="How many units it takes: 1 (points of a share), 0.5% (of a perplexity), 0.001nats (repeat).",
)
@click.option("--format", "fmt", type=click.Choice(["text", "json"]), default="text", show_default=True)
@line_options
@spec_options
def plan(
    spec: str,
    earlier: tuple[Path, ...],
    quantizations: tuple[str, ...],
    tasks: tuple[str, ...],
    name: str | None,
    dtype: str | None,
    **options: Any,
) -> None:
    """Print the smallest differences that a run of SPEC would find, and its jobs, time and disk.

    Spreads and times are those of earlier runs: of the spec's own results folder, and of the RESULTS
    folders (or of every results folder inside them). Nothing is downloaded, built or written. SPEC,
    MODEL, -q and -t are those of `qeval run`.

    \b
    Examples:
      qeval plan mine.yaml
      qeval plan mine.yaml results/ --detect 1 --detect 0.5%
      qeval plan ./model -q Q4_K_M,Q8_0 -t humaneval --detect 2
    """
    sys.exit(plan_asked(Asked(spec, quantizations, tasks, name, dtype), earlier, **options))


def plan_asked(
    asked: Asked,
    earlier: Sequence[Path] = (),
    results: Path | None = None,
    *,
    detect: Sequence[str] = (),
    fmt: str = "text",
    only: Sequence[str] = (),
    limit: int | None = None,
    device: str | None = None,
    **folders: Any,
) -> int:
    """Print the forecast; the exit code is that of ``run --dry-run``."""
    from qeval.forecast.look import forecast
    from qeval.forecast.power import wish
    from qeval.forecast.show import json_text, text
    from qeval.plan.preflight import report
    from qeval.plan.survey import survey
    from qeval.report.results import read_results
    from qeval.store.records import Store

    wishes = [wish(each) for each in detect]
    said = {key: folders.get(key) for key in ("data_dir", "cache_dir")}
    experiment = right(asked.parsed(limit=limit, device=device, **said), **folders)
    settings = spec_settings(experiment.settings, **folders)
    store = Store(results or Path("results") / experiment.name)
    done = store.latest()
    warn(store.warnings)
    found = survey(experiment, settings, done, only=only)
    own = [store.folder] if done else []
    others = [folder for folder in earlier if folder.resolve() != store.folder.resolve()]
    records = read_results([*own, *others])
    told = forecast(found, experiment, settings, records, wishes)
    echo(json_text(told) if fmt == "json" else text(told), end="")
    if found.problems:
        for line in report(found.problems):
            say(line)
        return 1
    ended = outcome(found.stays_failed(done), None, store.folder)
    if ended.last_line:
        say(ended.last_line)
    return ended.exit_code
