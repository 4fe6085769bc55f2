"""`qeval show`: everything known of a cell, or of all cells of a row."""

from __future__ import annotations

from pathlib import Path

import click

from qeval.cli.shared import FOLDER, TEXT_OR_JSON, check_order, command
from qeval.core.console import echo


@command()
@click.argument("cell")
@click.argument("results", type=FOLDER, nargs=-1, required=True)
@TEXT_OR_JSON
def show(cell: str, results: tuple[Path, ...], fmt: str) -> None:
    """Print everything known of a CELL in the RESULTS folders, with the paths of its files and log.

    CELL is the start of its key, the name of a row (all its cells), or a part of the cell's own name
    (model · quantization · task).

    \b
    Examples:
      qeval show 3f2a results/mine
      qeval show Q4_K_M results/mine
      qeval show 'Q4_K_M · gptq/wikitext2' results/mine --format json
    """
    from qeval.api.results import load
    from qeval.report.describe import describe

    check_order("show", cell, *map(str, results))
    found = load(*results).cells(cell)
    if fmt == "json":
        import json

        records = [{**record.to_json(), "folder": record.folder} for group in found for record in group]
        echo(json.dumps(records, indent=1, ensure_ascii=False))
    else:
        echo("\n".join(describe(*group) for group in found), end="")
