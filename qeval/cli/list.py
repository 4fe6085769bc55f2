"""`qeval list`: methods, engines, tasks and cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qeval.cli.shared import TEXT_OR_JSON, command
from qeval.core.console import columns, echo
from qeval.core.errors import UsageError, did_you_mean


@command(name="list")
@click.argument("what", type=click.Choice(["methods", "engines", "tasks", "cells", "configs"]))
@click.argument("which", metavar="[NAME]", required=False)
@TEXT_OR_JSON
def list_(what: Any, which: str | None, fmt: str) -> None:
    """List the registered methods, engines or tasks with their options, or only the one called NAME.

    For cells, NAME is a spec or a results folder; a results folder also gives their keys. Configs are
    specs that come with qeval: their paths.

    \b
    Examples:
      qeval list methods
      qeval list methods gptq
      qeval list cells results/mine --format json
      qeval run $(qeval list configs starcoder2) --dry-run
    """
    from qeval.plan.catalog import catalog

    if fmt == "json":
        import json

        echo(json.dumps(listed(what, which), indent=1, ensure_ascii=False))
    elif what == "configs":
        echo("\n".join(map(str, configs(which))))
    elif what != "cells":
        echo(catalog(what, which))
    else:
        rows = cells(_folder(which))
        echo(columns([[v[:12] if k == "key" else v for k, v in row.items()] for row in rows]))


def _folder(which: str | None) -> Path:
    if which is None:
        raise UsageError("qeval list cells: name a spec file or a results folder")
    return Path(which)


def listed(what: Any, which: str | None) -> object:
    """As plain data: of methods, engines and tasks the JSON Schema of their options."""
    from qeval.plan.catalog import catalog, option_schemas

    if what == "configs":
        return [str(path) for path in configs(which)]
    if what == "cells":
        return cells(_folder(which))
    catalog(what, which)  # where there is none of that name, it says what is close
    return option_schemas(what, which)


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


def cells(path: Path) -> list[dict[str, str]]:
    """The cells of a results folder with key, status and name; of a spec their names alone, since keys
    need the models."""
    if path.is_dir():
        from qeval.report.places import place_of
        from qeval.report.results import read_results
        from qeval.store.records import latest
        from qeval.store.results import cell_name

        records = latest(r for r in read_results([path]) if r.kind == "eval").values()
        where = [f" ({place_of(r).words()})" if "conditions" in r.cell else "" for r in records]
        return [
            {"key": r.key, "status": r.status, "name": cell_name(r.cell) + w}
            for r, w in zip(records, where, strict=True)
        ]
    from qeval.plan.spec import load_spec

    experiment = load_spec(path)
    return [
        {"name": f"{model.id} · {q.label} · {task.title}"}
        for model in experiment.models
        for q in experiment.quantizations
        for task in experiment.tasks
    ]
