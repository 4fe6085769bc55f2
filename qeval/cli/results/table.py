"""`qeval table`: the comparison in results folders."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qeval.cli.shared import FOLDER, command, margin_option
from qeval.core.console import echo
from qeval.tasks.layouts import LAYOUTS

if TYPE_CHECKING:
    from qeval.api.results import Results

FORMS = click.Choice(["text", "markdown", "csv", "json", "html"])


@command()
@click.argument("results", type=FOLDER, nargs=-1, required=True)
@click.option("--format", "fmt", type=FORMS, default="text", show_default=True)
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
    "--compare",
    "pair",
    nargs=2,
    metavar="ROW ROW",
    help="Only these two rows: the second's differences from the first.",
)
@margin_option("Differences within it are equivalent")
@click.option(
    "--sort",
    metavar="COLUMN",
    help="Order the rows of a model by it, smallest first; -COLUMN: largest.",
)
@click.option("--layout", type=click.Choice(["full", *LAYOUTS]), default="full", show_default=True)
def table(results: tuple[Path, ...], fmt: str, **options: object) -> None:
    """Print the comparison in the RESULTS folders (or in every results folder inside them).

    Names, order and baseline are those of the spec that each folder keeps, as it is now. Speed, time
    and peak memory have a column for each machine, device and number of threads that they were measured
    with. Where several folders hold the same cell, the newest is shown, and a note names the others.

    \b
    Examples:
      qeval table results/mine --wide
      qeval table laptop box --only humaneval --sort -pass@1
      qeval table results/mine --columns 'ppl*' --format markdown
    """
    from qeval.api.results import load
    from qeval.store.results import FAILED

    found = load(*results)
    print_table(found, fmt, options)
    sys.exit(FAILED if found.failed else 0)


def print_table(results: Results, fmt: str, options: dict[str, Any]) -> None:
    terminal = fmt == "text" and sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else None
    echo(results.table(**options).to(fmt, width=width, color=terminal), end="")
