"""`qeval show`: everything known of one cell."""

from __future__ import annotations

from pathlib import Path

import click

from qeval.cli.shared import FOLDER, command
from qeval.core.console import echo


@command()
@click.argument("cell")
@click.argument("results", type=FOLDER, nargs=-1, required=True)
def show(cell: str, results: tuple[Path, ...]) -> None:
    """Print everything known of one CELL (the start of its key) in the RESULTS folders."""
    from qeval.api.results import load

    echo(load(*results).show(cell), end="")
