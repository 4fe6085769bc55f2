"""`qeval try`: a first table, of a model that is made on the spot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click

from qeval.cli.asking import Asked
from qeval.cli.run import print_outcome, run_asked, told
from qeval.cli.shared import FOLDER, QUIET_Q, command
from qeval.core.console import say, tell
from qeval.core.errors import QevalError

ROWS, TASKS, LIMIT = "rtn:3:g32", "perplexity:pydoc", 16


@command(name="try")
@click.argument("folder", type=FOLDER, default="qeval-try", required=False)
@QUIET_Q
@click.option("-v", "--verbose", is_flag=True, help="Say where the log of every job is.")
def try_(folder: Path, quiet: bool, verbose: bool) -> None:
    """Make a tiny model and round it to 3 bits: a first table in a minute or two.

    Needs the extra `hf` and nothing else: no download, no GPU. The model (200,000 weights, trained for
    seconds on the docstrings of Python's library) and the results are kept in FOLDER.

    \b
    Examples:
      qeval try
      qeval try /tmp/first
    """
    from qeval.core.extras import require

    require("hf", "torch", "transformers")
    model = folder / "model"
    if not model.exists():
        if not quiet:
            say(f"training a tiny model into {model} (seconds, once)")
        train(model)
    asked = Asked(str(model), (ROWS,), (TASKS,), "try", "float32", folder / "try.yaml")
    how = told(quiet, verbose)
    ended = run_asked(asked, folder / "results", limit=LIMIT, device="cpu", told=how)
    print_outcome(ended)
    if not quiet:
        tell(
            f"\nYour own model: qeval run ORG/NAME -q Q4_K_M,gptq:4,awq -t perplexity --dry-run\n"
            f"What ran here:  {folder / 'try.yaml'}; again: qeval table {folder / 'results'} --wide"
        )
    sys.exit(ended.exit_code)


def train(model: Path) -> None:
    """In a process of its own: this one imports no torch.

    Raises:
        QevalError: it failed; with what it said last.
    """
    model.parent.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-m", "qeval.doctor.tiny", str(model)]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode or not model.exists():
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise QevalError(f"the tiny model could not be made: {last}")
