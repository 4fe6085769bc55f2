"""`qeval export`: a row's weights as a folder of their own."""

from __future__ import annotations

from pathlib import Path

import click

from qeval.cli.shared import FOLDER, command
from qeval.core.console import say


@command()
@click.argument("row")
@click.argument("folder", type=FOLDER)
@click.argument("results", type=FOLDER, nargs=-1)
def export(row: str, folder: Path, results: tuple[Path, ...]) -> None:
    """Copy the weights of a ROW, by label or method, to a new FOLDER, with their card.

    They are the ones that were measured, ready for transformers, vLLM or llama.cpp; README.md says how
    they were made, what was measured and how to run them. Without RESULTS: of the folder `results`.

    \b
    Examples:
      qeval recommend results/mine --vram 12GiB --context 8192
      qeval export Q5_K_M model-Q5_K_M results/mine
    """
    from qeval.api.results import load

    for path in load(*(results or (Path("results"),))).export(row, folder):
        say(f"written: {path}")
