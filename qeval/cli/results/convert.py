"""`qeval convert`: results in the forms that other programs read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qeval.cli.shared import FOLDER, command
from qeval.core.console import echo, say
from qeval.core.errors import UsageError

if TYPE_CHECKING:
    from qeval.api.results import Results
    from qeval.exports.rows import ExportRow

TEXTS = ("csv", "latex", "model-card")
FILES = ("parquet", "lm-eval", "eval-results")


@command()
@click.argument("results", type=FOLDER, nargs=-1, required=True)
@click.option("--to", "form", type=click.Choice([*TEXTS, *FILES]), required=True)
@click.option(
    "-o",
    "--output",
    "path",
    type=FOLDER,
    metavar="PATH",
    help="The file, or of lm-eval and eval-results the folder [default: standard output].",
)
@click.option("--row", metavar="ROW", help="Only this row, by label or method.")
@click.option(
    "--baseline", metavar="NAME", help="The row that differences are from: a label or a method."
)
def convert(
    results: tuple[Path, ...], form: str, path: Path | None, row: str | None, baseline: str | None
) -> None:
    """Write the RESULTS folders in a form that other programs read.

    \b
    csv, parquet   tidy: one metric a line, with interval, difference and conditions
    latex          the table, for \\input
    model-card     a model card of one row: method, calibration, numbers, model-index
    eval-results   .eval_results/*.yaml of the Hugging Face hub, a folder for each row
    lm-eval        results_*.json and samples_*.jsonl, as lm-eval writes them

    \b
    Examples:
      qeval convert results/mine --to csv > mine.csv
      qeval convert results/mine --to eval-results --row Q8_0 -o my-model-repo
    """
    from qeval.api.results import load
    from qeval.core.files import write_atomic

    found = load(*results)
    if form in TEXTS:
        text = _text(found, form, row, baseline)
        if path is None:
            echo(text, end="")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
        written: Sequence[Path] = [path]
    elif path is None:
        raise UsageError(f"qeval convert: give -o PATH, where the files of {form} go")
    else:
        written = _files(found, form, path, row, baseline)
    for one in written:
        say(f"written: {one}")


def _text(results: Results, form: str, row: str | None, baseline: str | None) -> str:
    if form == "csv":
        from qeval.exports.tidy_files import csv_text

        return csv_text([line for one in _rows(results, row, baseline) for line in one.lines])
    if form == "latex":
        return results.table(baseline=baseline, only=[row] if row else ()).to("latex")
    from qeval.exports.card import card

    rows = [one for one in _rows(results, row, baseline) if not one.records.floor]
    if len(rows) != 1:
        known = ", ".join(repr(one.label) for one in rows[:4])
        raise UsageError(f"qeval convert: a card is of one row: give --row, one of {known}")
    return card(rows[0])


def _files(
    results: Results, form: str, path: Path, row: str | None, baseline: str | None
) -> list[Path]:
    rows = _rows(results, row, baseline)
    if form == "parquet":
        from qeval.exports.tidy_files import write_parquet

        write_parquet([line for one in rows for line in one.lines], path)
        return [path]
    own = [one for one in rows if not one.records.floor]
    if form == "lm-eval":
        from qeval.exports.lm_eval import write_lm_eval

        return [file for one in own for file in write_lm_eval(one, path)]
    from qeval.exports.hub import write_eval_results

    folders = [path] if row else [path / one.file_name for one in own]
    return [f for one, to in zip(own, folders, strict=True) for f in write_eval_results(one, to)]


def _rows(results: Results, row: str | None, baseline: str | None) -> list[ExportRow]:
    from qeval.exports.rows import called

    rows = results.rows(baseline=baseline)
    return [called(rows, row)] if row else rows
