"""`qeval log`: rows as runs of an experiment logger."""

from __future__ import annotations

from pathlib import Path

import click

from qeval.cli.shared import FOLDER, command
from qeval.core.console import say


@command()
@click.argument("results", type=FOLDER, nargs=-1, required=True)
@click.option("--to", "logger", type=click.Choice(["mlflow", "wandb", "trackio"]), required=True)
@click.option("--project", default="qeval", show_default=True, metavar="NAME", help="Of the logger.")
@click.option("--row", metavar="ROW", help="Only this row, by label or method.")
def log(results: tuple[Path, ...], logger: str, project: str, row: str | None) -> None:
    """Log each row of the RESULTS folders as a run of MLflow, Weights & Biases or Trackio.

    Settings become parameters, numbers metrics with their intervals. Where it goes is the logger's own
    matter: MLFLOW_TRACKING_URI, WANDB_MODE=offline, TRACKIO_DIR.

    \b
    Examples:
      qeval log results/mine --to mlflow --project llama-quantizations
      WANDB_MODE=offline qeval log results/mine --to wandb
    """
    from qeval.api.results import load
    from qeval.exports.loggers import log as logged
    from qeval.exports.rows import called

    rows = load(*results).rows()
    n = logged([called(rows, row)] if row else rows, logger, project)
    say(f"{n} runs in the project {project} of {logger}")
