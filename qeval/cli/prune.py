"""`qeval prune`: what a results folder no longer needs."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qeval.cli.shared import CACHE_DIR, FOLDER, TEXT_OR_JSON, command
from qeval.core.console import echo
from qeval.core.errors import QevalError, UsageError

if TYPE_CHECKING:
    from qeval.plan.prune import Prunable
    from qeval.plan.spec import Experiment
    from qeval.store.records import Store


@command()
@click.argument("what", metavar="RESULTS|SPEC", type=FOLDER)
@click.option("--results", type=FOLDER, help="Results folder of SPEC [default: results/<its name>].")
@click.option("--unlisted", is_flag=True, help="Also the cells that the spec does not have.")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would go; remove nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@TEXT_OR_JSON
@CACHE_DIR
@click.pass_obj
def prune(cache_dir: Path, /, what: Path, results: Path | None, fmt: str, **how: bool) -> None:
    """Remove what a results folder no longer needs, after saying what and asking.

    What goes: records at whose key there is a newer one that tables show, and the samples that --force
    put aside for it. With --unlisted also the cells that the spec (spec.yaml in RESULTS, or SPEC) does
    not have: their records move to pruned.jsonl, their samples, scored windows and logs are removed,
    and so are cached models that only they used (here and in the results folders beside it).

    No number is lost, a cell that was interrupted stays, and a folder that a run uses is left alone.

    \b
    Examples:
      qeval prune results/mine --dry-run
      qeval prune results/mine
      qeval prune mine.yaml --unlisted --yes
    """
    if fmt == "json" and not (how["yes"] or how["dry_run"]):
        raise UsageError("qeval prune --format json: it cannot ask: add --dry-run or --yes")
    echo(pruned(what, results, cache_dir, fmt, **how))


def pruned(
    what: Path,
    results: Path | None,
    cache_dir: Path,
    fmt: str = "text",
    *,
    unlisted: bool = False,
    dry_run: bool = False,
    yes: bool = False,
) -> str:
    """What was, or would be, removed."""
    import json

    from qeval.plan.prune import n_unlisted, prunable, prune, running_beside
    from qeval.store.artifacts import ArtifactCache
    from qeval.store.records import Store, read_many

    folder, experiment = _asked(what, results, needed=unlisted)
    read_many([folder])  # for its words on what is no results folder
    store, cache = Store(folder), ArtifactCache(cache_dir)
    with nullcontext() if dry_run else store.lock():
        found = prunable(store, experiment, cache, unlisted=unlisted)
        lines = told(found)
        if unlisted and found.unlisted and (busy := running_beside(folder)):
            lines.append(f"cached models stay: a run is using {busy[0]}")
        if not unlisted and experiment is not None and (n := n_unlisted(store, experiment)):
            lines.append(f"{n} cells that the spec does not have stay (--unlisted)")
        done = bool(found) and not dry_run and (yes or _confirmed(found, lines))
        if done:
            prune(store, found, cache)
    if fmt == "json":
        return json.dumps(as_json(found, done), indent=1, ensure_ascii=False)
    return _last_line(store, found, lines, done=done, asked=not (yes or dry_run))


def told(found: Prunable) -> list[str]:
    """A line for each kind of what goes, with its bytes."""
    from qeval.core.units import human_bytes

    kinds = {
        "superseded": (found.superseded, "records with a newer one at the same key"),
        "put_aside": (found.put_aside, "folders that --force put aside"),
        "unlisted": (
            found.unlisted,
            f"cells that the spec does not have ({', '.join(found.rows)}): records to pruned.jsonl, "
            f"{len(found.left)} files and folders",
        ),
        "cached": (found.cached, "cached models that only these used"),
    }
    return [
        f"{len(some)} {what}: {human_bytes(found.sizes[kind])}"
        for kind, (some, what) in kinds.items()
        if some
    ]


def as_json(found: Prunable, done: bool) -> dict[str, object]:
    return {
        "folder": str(found.folder),
        "removed": done,
        "bytes": found.n_bytes,
        "superseded": {"records": len(found.superseded), "bytes": found.sizes["superseded"]},
        "put_aside": {"paths": _paths(found.put_aside), "bytes": found.sizes["put_aside"]},
        "unlisted": {
            "records": len(found.unlisted),
            "rows": list(found.rows),
            "paths": _paths(found.left),
            "bytes": found.sizes["unlisted"],
        },
        "cached": {"keys": [c.key for c in found.cached], "bytes": found.sizes["cached"]},
    }


def _paths(paths: tuple[Path, ...]) -> list[str]:
    return [str(path) for path in paths]


def _asked(what: Path, results: Path | None, *, needed: bool) -> tuple[Path, Experiment | None]:
    """The results folder, and the spec that says what it needs.

    Raises:
        SpecError: the spec is wrong; that of a folder only where it is ``needed``.
        UsageError: RESULTS and --results; a folder without a spec, where one is needed.
    """
    from qeval.plan.kept_spec import SPEC_NAME
    from qeval.plan.spec import load_spec

    if what.is_file() or what.suffix in (".yaml", ".yml"):
        experiment = load_spec(what)
        return results or Path("results") / experiment.name, experiment
    if results is not None:
        raise UsageError(f"--results: {what} is a results folder itself")
    kept = what / SPEC_NAME
    if needed and what.is_dir() and not kept.is_file():
        raise UsageError(f"{what}: has no {SPEC_NAME}: qeval prune SPEC --results {what} --unlisted")
    try:
        return what, load_spec(kept) if kept.is_file() or needed else None
    except QevalError:
        if needed:
            raise
        return what, None


def _confirmed(found: Prunable, lines: list[str]) -> bool:
    """Raises UsageError where nobody can answer."""
    import sys

    from qeval.core.units import human_bytes

    if not sys.stdin.isatty():
        raise UsageError(
            "qeval prune: nobody can be asked here: add --dry-run to look, --yes to remove"
        )
    echo("\n".join(lines))
    lines.clear()
    return click.confirm(f"Remove {human_bytes(found.n_bytes)} from {found.folder}?", err=True)


def _last_line(store: Store, found: Prunable, lines: list[str], *, done: bool, asked: bool) -> str:
    from qeval.core.units import human_bytes

    size = human_bytes(found.n_bytes)
    if not found:
        last = f"nothing to remove in {store.folder}"
    elif done:
        last = f"removed {size} from {store.folder}"
    else:
        last = "nothing was removed" if asked else f"would remove {size} from {store.folder}"
    return "\n".join([*lines, last])
