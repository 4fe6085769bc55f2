"""What several commands share: types of options, ``--debug``, ``--cache-dir``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from qeval.core.settings import EngineSettings, RunSettings

FORMATS = click.Choice(["text", "markdown", "csv", "json"])
FOLDER = click.Path(path_type=Path)


class Debuggable(click.Command):
    """Also takes ``--debug``, which the help of ``qeval`` shows, wherever a user puts it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        how = {"is_flag": True, "expose_value": False, "hidden": kwargs.get("name") != "cli"}
        about = "Show tracebacks, those of a run's workers included."
        self.params.append(click.Option(["--debug"], help=about, **how))


class Group(Debuggable, click.Group):
    command_class = Debuggable
    group_class = type  # its groups are like it


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


def debug() -> bool:
    """Asked before the command line is understood, since that may be what fails."""
    return "--debug" in sys.argv


def run_settings(
    engine: EngineSettings, cache_dir: Path | None, data_dir: Path | None, **more: Any
) -> RunSettings:
    """With the folders of the environment's variables, or the usual ones, where none are given."""
    from qeval.core.files import real_path
    from qeval.core.settings import RunSettings, default_cache_dir
    from qeval.data.datasets import DataSource

    data = DataSource(data_dir).data_dir
    return RunSettings(
        real_path(cache_dir or default_cache_dir()), real_path(data) if data else None, engine, **more
    )
