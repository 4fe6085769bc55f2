"""`qeval report`: results as one page. `qeval plot`: its two main plots as pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from qeval.cli.shared import FOLDER, SIZE, command, margin_option
from qeval.core.console import echo

_OPTIONS = (
    click.option(
        "--vram", type=SIZE, metavar="SIZE", help="Of the GPU, as in 12GiB [default: enough for all]."
    ),
    click.option("--ram", type=SIZE, metavar="SIZE", help="In place of --vram, for a CPU."),
    click.option(
        "--context",
        type=click.IntRange(min=1),
        metavar="TOKENS",
        help="Of each sequence [default: 4096].",
    ),
    click.option(
        "--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Sequences at once."
    ),
    margin_option("Rows within it are equally good"),
    click.option(
        "--metric",
        metavar="COLUMN",
        help="What says how good a row is [default: as `qeval recommend`].",
    ),
    click.option(
        "--baseline", metavar="NAME", help="The row that differences are from: a label or a method."
    ),
)


def page_options(function: Callable[..., object]) -> Callable[..., object]:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@command()
@click.argument("results", type=FOLDER, nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    "path",
    type=FOLDER,
    default=Path("report.html"),
    show_default=True,
    metavar="FILE",
    help="The page.",
)
@page_options
def report(results: tuple[Path, ...], path: Path, **options: Any) -> None:
    """Write the RESULTS folders as one self-contained page, which needs no network.

    The verdict, loss against memory, the table, divergence, windows, flips with both completions,
    layers, speed, and where the numbers come from.

    \b
    Examples:
      qeval report results/mine -o report.html
      qeval report results/mine --vram 12GiB --context 8192
    """
    from qeval.api.results import load

    echo(str(load(*results).report(path, **options)))


@command()
@click.argument("results", type=FOLDER, nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    "folder",
    type=FOLDER,
    default=Path(),
    metavar="FOLDER",
    help="Where the pictures go [default: here].",
)
@page_options
def plot(results: tuple[Path, ...], folder: Path, **options: Any) -> None:
    """Draw loss against memory and divergence by certainty of the RESULTS folders: pareto.svg,
    pareto.png, kld.svg and kld.png.

    \b
    Examples:
      qeval plot results/mine -o plots
      qeval plot results/mine --vram 12GiB --context 8192
    """
    from qeval.api.results import load

    for one in load(*results).plot(folder, **options):
        echo(str(one))
