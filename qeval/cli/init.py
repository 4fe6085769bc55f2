"""`qeval init`: a spec file to begin with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qeval.cli.asking import DTYPES, Asked, save
from qeval.cli.shared import FOLDER, command
from qeval.core.console import echo, tell
from qeval.core.errors import SpecErrors, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

_ROWS, _TASKS = "Q8_0,Q4_K_M", "perplexity"


@command()
@click.argument("model", required=False)
@click.option("-q", "--quantizations", multiple=True, metavar="LIST", help="As in `qeval run`.")
@click.option("-t", "--tasks", multiple=True, metavar="LIST", help="As in `qeval run`.")
@click.option("--name", help="Of the spec and its results folder [default: the model's].")
@click.option("--dtype", type=click.Choice(DTYPES), help="[default: bfloat16].")
@click.option("--limit", type=click.IntRange(min=1), help="First N windows or problems of every task.")
@click.option("-o", "--output", type=FOLDER, metavar="FILE", help="[default: NAME.yaml].")
def init(
    model: str | None,
    quantizations: tuple[str, ...],
    tasks: tuple[str, ...],
    name: str | None,
    dtype: str | None,
    limit: int | None,
    output: Path | None,
) -> None:
    """Write a spec: ask three questions, or take the answers from the command line.

    A file that is there already is never overwritten.

    \b
    Examples:
      qeval init
      qeval init Qwen/Qwen2.5-0.5B -q Q4_K_M,gptq:4 -t perplexity,humaneval --limit 16
    """
    asked = answers(Asked(model or "", quantizations, tasks, name, dtype))
    errors = asked.parsed(limit=limit).errors
    if errors:
        raise SpecErrors(errors)
    line = asked.line(limit=limit)
    path = output or Path(f"{line.name}.yaml")
    save(path, line.text)
    echo(str(path))
    tell(f"next: qeval run {path} --dry-run\n      qeval run {path}")


def answers(asked: Asked) -> Asked:
    """With what is missing asked for, on standard error.

    Raises:
        UsageError: something is missing, and nobody is there to be asked.
    """
    from dataclasses import replace

    from qeval.plan.one_line import is_model
    from qeval.plan.shorthand import quantization, split, task

    def is_one(model: str) -> None:
        if not is_model(model):
            raise UsageError(f"{model}: a spec is there already: qeval run {model}")

    def each(entry: Callable[[str], str]) -> Callable[[str], None]:
        def check(text: str) -> None:
            for item in split(text):
                try:
                    entry(item)
                except UsageError as err:
                    raise UsageError(f"{item}: {err}") from err

        return check

    if not asked.what:
        asked = replace(asked, what=_ask("Model (a folder, a .gguf file, ORG/NAME)", None, is_one))
    is_one(asked.what)
    if not asked.quantizations:
        asked = replace(asked, quantizations=(_ask("Quantizations", _ROWS, each(quantization)),))
    if not asked.tasks:
        asked = replace(asked, tasks=(_ask("Tasks", _TASKS, each(task)),))
    return asked


def _ask(question: str, default: str | None, check: Callable[[str], None]) -> str:
    if not _is_terminal():
        raise UsageError("qeval init: give MODEL, -q and -t, or call it in a terminal, where it asks")
    while True:
        answer: str = click.prompt(question, default=default, err=True)
        try:
            check(answer.strip())
        except UsageError as err:
            tell(str(err))
        else:
            return answer.strip()


def _is_terminal() -> bool:
    return sys.stdin.isatty()
