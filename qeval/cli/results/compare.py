"""`qeval compare`: two rows, two folders, or two versions of qeval, side by side."""

from __future__ import annotations

from pathlib import Path

import click

from qeval.cli.shared import FOLDER, check_order, command, margin_option
from qeval.core.console import echo
from qeval.core.errors import UsageError


@command()
@click.argument("a")
@click.argument("b")
@click.argument("results", type=FOLDER, nargs=-1)
@margin_option("Differences within it are equivalent")
@click.option(
    "--flips",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    metavar="N",
    help="Of so many problems a task that changed sides, print both completions.",
)
@click.option("--format", "fmt", type=click.Choice(["text", "json"]), default="text", show_default=True)
def compare(a: str, b: str, results: tuple[Path, ...], margin: float, flips: int, fmt: str) -> None:
    """Compare two rows of the RESULTS folders, by label or method, or what two versions or git commits
    of qeval measured there. Without RESULTS, A and B are two results folders.

    \b
    Every number that both have, with the paired difference of B from A; what else differs: settings,
    versions, hardware; and which problems changed sides, with both completions.

    \b
    Examples:
      qeval compare none Q8_0 results/mine
      qeval compare results/before results/after
      qeval compare 0.1.0 3f2a9c1 results/mine
    """
    from qeval.api.results import load
    from qeval.comparison import forms

    if results:
        check_order("compare", a, b, *map(str, results))
        found = load(*results).compare(a, b, margin=margin)
    else:
        for side in (a, b):
            if not Path(side).exists():
                raise UsageError(
                    f"qeval compare: {side} is no results folder: name two of them, or, for two rows, "
                    "the results that have them: qeval compare ROW ROW RESULTS"
                )
        found = load(a).compare(load(b), margin=margin)
    echo(forms.json_text(found) if fmt == "json" else forms.text(found, shown=flips), end="")
