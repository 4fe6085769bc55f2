"""`qeval table`: the comparison in results folders."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qeval.cli.shared import FOLDER, FORMATS, command, margin_option
from qeval.core.console import echo
from qeval.tasks.layouts import LAYOUTS

if TYPE_CHECKING:
    from qeval.core.record import Record


@command()
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
    """
    from qeval.report.results import read_results
    from qeval.store.results import FAILED, failed_cells

    records = read_results(results)
    print_table(records, fmt, options)
    sys.exit(FAILED if failed_cells(records) else 0)


def print_table(records: list[Record], fmt: str, options: dict[str, Any]) -> None:
    from qeval.report.compare import Margins
    from qeval.report.render import render
    from qeval.report.rows import build_table

    terminal = fmt == "text" and sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else None
    margin = options.pop("margin", 0.01)
    table = build_table(records, margins=Margins(margin, margin), **options)
    echo(render(table, fmt, width=width, color=terminal), end="")
