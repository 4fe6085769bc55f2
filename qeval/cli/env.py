"""`qeval env`: separate environments, for libraries that need versions of their own."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qeval.cli.shared import CACHE_DIR, FOLDER, QUIET_Q, TEXT_OR_JSON, group
from qeval.core.console import columns, echo, say
from qeval.core.units import human_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence


@group()
@CACHE_DIR
def env() -> None:
    """Separate environments, for libraries that need versions of their own (vLLM, AutoGPTQ).

    \b
    Examples:
      qeval env list
    """


@env.command(name="create")
@click.argument("name")
@click.option("--python", type=FOLDER, metavar="PATH", help="Make it from this interpreter.")
@click.option(
    "--system-site-packages",
    is_flag=True,
    help="Use torch and other packages of that interpreter; only what does not fit is installed.",
)
@click.option(
    "--library",
    metavar="SPEC",
    help="Another version of its library than the tested one: vllm==0.27.1.",
)
@click.option("--pip", is_flag=True, help="Use pip, even where uv is on PATH.")
@click.option("--recreate", is_flag=True, help="Make it again, even where it is ready.")
@QUIET_Q
@click.option("-v", "--verbose", is_flag=True, help="Say each command that is run, and its log.")
@CACHE_DIR
@click.pass_obj
def env_create(cache_dir: Path, /, name: str, **options: Any) -> None:
    """Make the environment NAME (`qeval env list` shows the names).

    If it is ready, nothing is done; if it is out of date, it is made again. uv makes it where it is on
    PATH, else pip. pip's own settings (PIP_INDEX_URL, PIP_FIND_LINKS, PIP_NO_INDEX, pip.conf) hold for
    both.

    \b
    Examples:
      qeval env create vllm
      qeval env create auto-gptq --python /usr/bin/python3.11
    """
    echo(create_environment(cache_dir, name, **options))


@env.command(name="list")
@TEXT_OR_JSON
@CACHE_DIR
@click.pass_obj
def env_list(cache_dir: Path, fmt: str) -> None:
    """List the environments: state, Python, size, place, and what each is for.

    \b
    Examples:
      qeval env list
    """
    echo(environment_json(cache_dir) if fmt == "json" else environment_table(cache_dir))


@env.command(name="remove")
@click.argument("names", nargs=-1, required=True)
@CACHE_DIR
@click.pass_obj
def env_remove(cache_dir: Path, names: tuple[str, ...]) -> None:
    """Remove environments by their NAMES.

    \b
    Examples:
      qeval env remove vllm
    """
    echo(remove_environments(cache_dir, names))


def create_environment(
    cache_dir: Path, name: str, *, quiet: bool = False, verbose: bool = False, **options: Any
) -> str:
    """Make an environment, saying its steps on stderr; where it is and how it stands."""
    from qeval.cli.run import told
    from qeval.envs import build as envs

    how = told(quiet, verbose)
    started = time.monotonic()

    def step(what: str) -> None:
        if how != "failures":
            say(f"[{name} {time.monotonic() - started:3.0f}s] {what}")

    made = envs.create(name, cache_dir, say=step, verbose=how == "all", **options)
    versions = ", ".join(f"{package} {version}" for package, version in made.versions.items())
    return f"{name} is {made.state}: {made.path} (Python {made.python}, {versions})"


def environment_json(cache_dir: Path) -> str:
    import json
    from dataclasses import asdict

    from qeval.envs.build import states

    found = [{**asdict(e), "path": str(e.path)} for e in states(cache_dir)]
    return json.dumps(found, indent=1, ensure_ascii=False)


def environment_table(cache_dir: Path) -> str:
    from qeval.envs.build import states

    rows = [("name", "state", "python", "size", "where", "what for")]
    for e in states(cache_dir):
        size = human_bytes(e.n_bytes) if e.n_bytes else "-"
        rows.append((e.name, e.state, e.python or "-", size, str(e.path), e.about))
    return columns(rows)


def remove_environments(cache_dir: Path, names: Sequence[str]) -> str:
    """Raises UsageError where one is not there or is being built; those before it are removed."""
    from qeval.envs import build as envs

    found = {e.name: e for e in envs.states(cache_dir)}
    for name in names:
        envs.remove(name, cache_dir)
    return f"removed {', '.join(names)}, {human_bytes(sum(found[n].n_bytes for n in names))}"
