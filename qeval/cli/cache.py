"""`qeval cache`: quantized models that are kept for the next run."""

from __future__ import annotations

import math
import time
from pathlib import Path

import click

from qeval.cli.shared import CACHE_DIR, TEXT_OR_JSON, group
from qeval.core.console import columns, echo
from qeval.core.errors import UsageError, one_line


@group()
@CACHE_DIR
def cache() -> None:
    """The cache of quantized models.

    \b
    Examples:
      qeval cache list
    """


@cache.command(name="list")
@TEXT_OR_JSON
@CACHE_DIR
@click.pass_obj
def cache_list(cache_dir: Path, fmt: str) -> None:
    """List the cached models with size and last use.

    \b
    Examples:
      qeval cache list
      qeval cache list --format json
    """
    echo(cache_json(cache_dir) if fmt == "json" else cache_table(cache_dir))


@cache.command(name="remove")
@click.argument("keys", nargs=-1)
@click.option("--older-than", type=float, metavar="DAYS", help="Those not used for so many days.")
@click.option("--all", "everything", is_flag=True, help="All of them.")
@CACHE_DIR
@click.pass_obj
def cache_remove(
    cache_dir: Path, keys: tuple[str, ...], older_than: float | None, everything: bool
) -> None:
    """Remove cached models by the start of their KEYS.

    \b
    Examples:
      qeval cache remove 3f2a
      qeval cache remove --older-than 30
    """
    echo(remove_cached(cache_dir, keys, older_than, everything))


def cache_json(cache_dir: Path) -> str:
    import json

    from qeval.store.artifacts import ArtifactCache
    from qeval.store.references import References

    cache = ArtifactCache(cache_dir)
    models = [
        {
            "key": e.key,
            "name": e.name,
            "bytes": e.n_bytes,
            "last_used": e.last_used,
            "folder": str(e.folder),
        }
        for e in cache.entries()
    ]
    found = {
        "folder": str(cache_dir),
        "models": models,
        "unfinished_bytes": cache.unfinished_bytes(),
        "predictions_bytes": References(cache_dir).sizes(),
    }
    return json.dumps(found, indent=1, ensure_ascii=False)


def cache_table(cache_dir: Path) -> str:
    from qeval.core.units import human_bytes
    from qeval.store.artifacts import ArtifactCache
    from qeval.store.references import References

    cache = ArtifactCache(cache_dir)
    entries = cache.entries()
    rows = [("key", "size", "last used", "what")]
    for e in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(e.last_used))
        rows.append((e.key[:12], human_bytes(e.n_bytes), used, one_line(e.name)))
    total = sum(e.n_bytes for e in entries)
    kept = cache.unfinished_bytes()
    also = f"; {len(kept)} unfinished builds, {human_bytes(sum(kept))}" if kept else ""
    if sizes := References(cache_dir).sizes():
        also += f"; {len(sizes)} baselines' predictions, {human_bytes(sum(sizes.values()))}"
    return f"{columns(rows)}\n{len(entries)} models, {human_bytes(total)} in {cache_dir}{also}"


def remove_cached(cache_dir: Path, keys: tuple[str, ...], older: float | None, everything: bool) -> str:
    """Raises UsageError where nothing, more than one way of choosing, or no number of days is given."""
    from qeval.core.units import human_bytes
    from qeval.store.artifacts import ArtifactCache
    from qeval.store.references import References

    if sum((bool(keys), older is not None, everything)) != 1:
        raise UsageError("qeval cache remove: give KEYS, or --older-than DAYS, or --all")
    if older is not None and not 0 <= older < math.inf:
        raise UsageError(f"qeval cache remove: --older-than {older:g}: give a number of days from 0 on")
    cache = ArtifactCache(cache_dir)
    if older is not None:
        removed = cache.older_than(older)
    else:
        removed = cache.entries() if everything else cache.named(keys)
    cache.remove(removed)
    freed = sum(e.n_bytes for e in removed)
    if everything or older is not None:
        freed += cache.remove_unfinished(older or 0.0)
        freed += References(cache_dir).remove(older or 0.0)
    return f"removed {len(removed)} models, {human_bytes(freed)}"
