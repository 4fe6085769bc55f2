"""`qeval list`: methods, engines, tasks and cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qeval.cli.shared import command
from qeval.core.console import columns, echo
from qeval.core.errors import UsageError, did_you_mean


@command(name="list")
@click.argument("what", type=click.Choice(["methods", "engines", "tasks", "cells", "configs"]))
@click.argument("which", metavar="[NAME]", required=False)
def list_(what: Any, which: str | None) -> None:
    """List the registered methods, engines or tasks with their options, or only the one called NAME.

    For cells, NAME is a spec or a results folder; a results folder also gives their keys. Configs are
    specs that come with qeval: their paths.
    """
    from qeval.plan.catalog import catalog

    if what == "configs":
        echo("\n".join(map(str, configs(which))))
    elif what != "cells":
        echo(catalog(what, which))
    elif which is None:
        raise UsageError("qeval list cells: name a spec file or a results folder")
    else:
        echo(list_cells(Path(which)))


def configs(name: str | None) -> list[Path]:
    """The specs that come with qeval, or the one called ``name``.

    Raises:
        UsageError: there is none of that name.
    """
    package = Path(__file__).parents[1]
    wheel, checkout = package / "_data" / "configs", package.parent / "configs"
    found = {path.stem: path for path in sorted((wheel if wheel.is_dir() else checkout).glob("*.yaml"))}
    if name is None:
        return list(found.values())
    if name not in found:
        raise UsageError(f"no config is called {name!r}{did_you_mean(name, found)}")
    return [found[name]]


def list_cells(path: Path) -> str:
    """The cells of a results folder with key and status; of a spec their names alone, since keys need
    the models."""
    if path.is_dir():
        from qeval.report.places import place_of
        from qeval.report.results import read_results
        from qeval.store.records import latest
        from qeval.store.results import cell_name

        records = latest(r for r in read_results([path]) if r.kind == "eval").values()
        where = [f" ({place_of(r).words()})" if "conditions" in r.cell else "" for r in records]
        rows = zip(records, where, strict=True)
        return columns([(r.key[:12], r.status, cell_name(r.cell) + w) for r, w in rows])
    from qeval.plan.spec import load_spec

    experiment = load_spec(path)
    return "\n".join(
        f"{model.id} · {q.label} · {task.label}{f' [first {task.limit}]' if task.limit else ''}"
        for model in experiment.models
        for q in experiment.quantizations
        for task in experiment.tasks
    )
