"""`qeval doctor`: what this machine can do."""

from __future__ import annotations

import sys

import click

from qeval.cli.shared import command
from qeval.core.console import echo


@command()
@click.option("--format", "fmt", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--no-trials", is_flag=True, help="Only look which libraries are installed.")
def doctor(fmt: str, no_trials: bool) -> None:
    """Try what this machine can do: a quantized linear layer of every library, the environments, the
    walls around generated code, one by one.

    Takes about 40 seconds on two cores. What is missing is shown with the command that installs it.

    The exit code is 1 if no sandbox works. Missing or broken libraries do not change it: no spec needs
    all of them, and `qeval run` says at once which of them it lacks.

    \b
    Examples:
      qeval doctor
      qeval doctor --no-trials --format json
    """
    import json

    from qeval.doctor.examine import examine

    report = examine(trials=not no_trials)
    echo(json.dumps(report.to_json()) if fmt == "json" else report.text())
    sys.exit(0 if report.chosen else 1)
