"""What several commands share: types of options, ``--debug``, ``--cache-dir``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from qeval.core.errors import UsageError
from qeval.core.units import parse_bytes, parse_percent

F = TypeVar("F", bound=Callable[..., Any])
FORMATS = click.Choice(["text", "markdown", "csv", "json"])
FOLDER = click.Path(path_type=Path)


TEXT_OR_JSON = click.option(
    "--format", "fmt", type=click.Choice(["text", "json"]), default="text", show_default=True
)


QUIET = click.option("--quiet", is_flag=True, help="Say only what failed; no progress.")
# -q is what people will type most with `run`, `plan` and `init`: there it is no --quiet.
QUIET_Q = click.option("--quiet", "-q", is_flag=True, help="Say only what failed; no progress.")


class _Parsed(click.ParamType):  # type: ignore[type-arg]  # generic in click's newest versions alone
    """A number that is written with its unit; ``parse`` raises ValueError for what is none."""

    def __init__(self, name: str, parse: Callable[[str], float]) -> None:
        self.name, self._parse = name, parse

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            return self._parse(str(value))
        except ValueError as err:
            self.fail(str(err), param, ctx)


SIZE = _Parsed("size", parse_bytes)
PERCENT = _Parsed("percent", parse_percent)
"""A share: ``1%``, or ``1``, is 0.01."""


def margin_option(what: str) -> Callable[[F], F]:
    """``--margin``: ``what`` counts as nothing within it."""
    return click.option(
        "--margin",
        type=PERCENT,
        default="1%",
        show_default=True,
        metavar="PERCENT",
        help=f"{what}: of a perplexity; points of a share.",
    )


class Debuggable(click.Command):
    """Also takes ``--debug``, which the help of ``qeval`` shows, wherever a user puts it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        how = {"is_flag": True, "expose_value": False, "hidden": kwargs.get("name") != "cli"}
        about = "Show tracebacks, those of a run's workers included."
        self.params.append(click.Option(["--debug"], help=about, **how))


class Group(Debuggable, click.Group):
    """``sections``: its commands under headings in its help; none: all in one list."""

    command_class = Debuggable
    group_class = type  # its groups are like it

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections: dict[str, tuple[click.Command, ...]] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in their order, not that of the alphabet

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if not self.sections:
            super().format_commands(ctx, formatter)
        for title, commands in self.sections.items():
            with formatter.section(title):
                width = formatter.width - 6 - max(len(c.name or "") for c in commands)
                formatter.write_dl([(c.name or "", c.get_short_help_str(width)) for c in commands])


def command(name: str | None = None) -> Callable[[Callable[..., object]], Debuggable]:
    return click.command(name, cls=Debuggable)


def group(name: str | None = None) -> Callable[[Callable[..., object]], Group]:
    return click.group(name, cls=Group)


def _cache_dir(context: click.Context, _: click.Parameter, value: Path | None) -> Path | None:
    """The folder of a group that works on the cache, for its commands; a command's own wins."""
    from qeval.core.files import real_path
    from qeval.core.settings import default_cache_dir

    if value is not None or context.obj is None:
        context.obj = real_path(value or default_cache_dir())
    return value


CACHE_DIR = click.option(
    "--cache-dir",
    type=FOLDER,
    callback=_cache_dir,
    expose_value=False,
    help="[default: QEVAL_CACHE_DIR, ~/.cache/qeval].",
)


SPEC_OPTIONS = (
    click.option(
        "--results", type=FOLDER, help="Results folder [default: results/<name of the spec>]."
    ),
    click.option(
        "--only",
        multiple=True,
        metavar="PATTERN",
        help="Only cells with this in their name, method or task (repeat).",
    ),
    click.option(
        "--limit", type=click.IntRange(min=1), help="First N windows or problems of every task."
    ),
    click.option("--data-dir", type=FOLDER, help="Datasets on disk [default: QEVAL_DATA_DIR]."),
    click.option(
        "--cache-dir",
        type=FOLDER,
        help="Quantized models [default: QEVAL_CACHE_DIR, ~/.cache/qeval].",
    ),
    click.option("--device", help="auto, cpu, cuda or cuda:N [default: the spec's]."),
    click.option(
        "--allow-weak-sandbox", is_flag=True, help="Run generated code with resource limits only."
    ),
)


def spec_options(function: Callable[..., object]) -> Callable[..., object]:
    """The options of the commands that take a spec."""
    for option in reversed(SPEC_OPTIONS):
        function = option(function)
    return function


def debug() -> bool:
    """Asked before the command line is understood, since that may be what fails."""
    return "--debug" in sys.argv


def check_order(name: str, *words: str) -> None:
    """For a command whose results folders come last. Raises UsageError where one comes first."""
    first, *others = words
    if Path(first).is_dir() and not any(Path(word).is_dir() for word in others):
        said = " ".join(map(shlex.quote, [*others, first]))
        raise UsageError(f"qeval {name}: the results folder comes last: qeval {name} {said}")
