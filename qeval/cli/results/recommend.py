"""`qeval recommend`: which row to run in so much memory."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from qeval.cli.shared import FOLDER, SIZE, command, margin_option
from qeval.core.console import echo
from qeval.core.errors import UsageError

NOTHING_FITS = 3  # exit code


@command()
@click.argument("results", type=FOLDER, nargs=-1, required=True)
@click.option("--vram", type=SIZE, metavar="SIZE", help="Of the GPU, as in 12GiB.")
@click.option("--ram", type=SIZE, metavar="SIZE", help="In place of --vram, for a CPU.")
@click.option(
    "--context", type=click.IntRange(min=1), required=True, metavar="TOKENS", help="Of each sequence."
)
@click.option(
    "--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Sequences at once."
)
@click.option(
    "--min-speed",
    type=click.FloatRange(min=0, min_open=True),
    metavar="TOK/S",
    help="Decoding, of all sequences together.",
)
@margin_option("Rows within it are equally good")
@click.option(
    "--metric",
    metavar="COLUMN",
    help="What says how good a row is [default: divergence, else perplexity, else pass@k].",
)
@click.option("--model", metavar="NAME", help="Which one, where the results have several.")
@click.option(
    "--baseline", metavar="NAME", help="The row that differences are from: a label or a method."
)
@click.option("--format", "fmt", type=click.Choice(["text", "json"]), default="text", show_default=True)
def recommend(
    results: tuple[Path, ...],
    vram: float | None,
    ram: float | None,
    context: int,
    batch: int,
    min_speed: float | None,
    margin: float,
    metric: str | None,
    model: str | None,
    baseline: str | None,
    fmt: str,
) -> None:
    """Say which row of the RESULTS folders to run in so much memory, and why.

    The best in quality that fits; of rows that are not distinguishable the smallest. Exit code 3 where
    nothing fits.

    \b
    Examples:
      qeval recommend results/mine --vram 12GiB --context 8192
      qeval recommend results/mine --ram 16GiB --context 4096 --min-speed 20
    """
    from qeval.api.results import load
    from qeval.decide import recommend_forms as forms

    if (vram is None) == (ram is None):
        raise UsageError("qeval recommend: give --vram or --ram, as in --vram 12GiB")
    found = load(*results).recommend(
        vram=vram,
        ram=ram,
        context=context,
        batch=batch,
        min_speed=min_speed,
        margin=margin,
        metric=metric,
        model=model,
        baseline=baseline,
    )
    echo(forms.json_text(found) if fmt == "json" else forms.text(found), end="")
    sys.exit(0 if found.answer else NOTHING_FITS)
