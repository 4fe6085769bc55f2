"""`qeval gate`: whether results keep to bounds, for a CI job."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from qeval.cli.shared import FOLDER, PERCENT, command, margin_option
from qeval.core.console import echo
from qeval.core.errors import UsageError

if TYPE_CHECKING:
    from qeval.decide.gate_forms import Outcome

NOT_KEPT = 3  # exit code


@command()
@click.argument("results", type=FOLDER, nargs=-1, required=True)
@click.option("--rules", type=FOLDER, metavar="FILE", help="Bounds, in YAML.")
@click.option(
    "--max-loss",
    type=PERCENT,
    metavar="PERCENT",
    help="Of every perplexity and share (points) of every row, against the baseline.",
)
@margin_option("The loss that is still 'not worse'")
@click.option(
    "--undecided",
    type=click.Choice(["fail", "pass"]),
    default="fail",
    show_default=True,
    help="What it counts as where the interval reaches over the bound.",
)
@click.option("--baseline", metavar="NAME", help="The row that changes are from: a label or a method.")
@click.option("--junit", type=FOLDER, metavar="FILE", help="Also write JUnit's XML.")
@click.option("--format", "fmt", type=click.Choice(["text", "json"]), default="text", show_default=True)
def gate(
    results: tuple[Path, ...],
    rules: Path | None,
    max_loss: float | None,
    margin: float,
    undecided: Literal["pass", "fail"],
    baseline: str | None,
    junit: Path | None,
    fmt: str,
) -> None:
    """Check RESULTS folders against bounds: pass, fail or undecided. Exit code 3 where one fails.

    In a GitHub workflow it also writes annotations and the step's summary.

    \b
    Examples:
      qeval gate results/mine --max-loss 2%
      qeval gate results/mine --rules gate.yaml --junit gate.xml
    """
    from qeval.api.results import load
    from qeval.core.files import write_atomic
    from qeval.decide import gate_forms as forms
    from qeval.decide.rules import every_loss, load_rules

    if rules is None and max_loss is None:
        raise UsageError("qeval gate: give --rules FILE or --max-loss, as in --max-loss 2%")
    asked = load_rules(rules) if rules else []
    asked += [] if max_loss is None else [every_loss(max_loss)]
    checks = load(*results).gate(asked, baseline=baseline, margin=margin)
    found = forms.Outcome(checks, undecided)
    if junit:
        write_atomic(junit, forms.junit(found))
    echo(forms.json_text(found) if fmt == "json" else forms.text(found), end="")
    _tell_github(found, to_stderr=fmt == "json")
    sys.exit(NOT_KEPT if found.verdict == "fail" else 0)


def _tell_github(found: Outcome, *, to_stderr: bool) -> None:
    """Where it runs in one of its workflows, by its documented variables."""
    from qeval.core.console import tell
    from qeval.decide import gate_forms as forms

    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in forms.workflow_commands(found):
            (tell if to_stderr else echo)(line)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(forms.step_summary(found))
