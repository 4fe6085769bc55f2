"""What a results folder no longer needs, and its removal: `qeval prune`.

No number is lost. A record goes only if a newer one at the same key is what tables show; the records
of cells that the spec does not have are moved to ``pruned.jsonl``, which no table reads. What has no
record (a cell that was interrupted) stays, since the next run goes on with it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qeval.core.errors import StoreError, UsageError
from qeval.core.files import disk_message, write_atomic
from qeval.core.record import Record
from qeval.plan.kept_spec import named_by
from qeval.plan.spec import Experiment
from qeval.store.artifacts import ArtifactCache, CachedArtifact
from qeval.store.records import Store, latest

MOVED = "pruned.jsonl"


@dataclass(frozen=True)
class Prunable:
    """What goes, by its reason. ``paths`` are files and folders of the results folder."""

    folder: Path
    superseded: tuple[int, ...]  # lines of records.jsonl, from 0
    unlisted: tuple[int, ...]  # lines that move to pruned.jsonl
    rows: tuple[str, ...]  # of the latter, as tables name them
    put_aside: tuple[Path, ...]  # what measurements left that --force repeated
    left: tuple[Path, ...]  # samples, scored windows, job files and logs of what moves
    cached: tuple[CachedArtifact, ...]  # that only these rows used
    sizes: dict[str, int]  # bytes that are freed, by the name of the field

    @property
    def n_bytes(self) -> int:
        return sum(self.sizes.values())

    def __bool__(self) -> bool:
        return bool(self.superseded or self.unlisted or self.put_aside)


def prunable(
    store: Store, experiment: Experiment | None, cache: ArtifactCache, *, unlisted: bool
) -> Prunable:
    """What a results folder no longer needs.

    Args:
        experiment: the spec that says which cells are needed; None: unknown.
        unlisted: also the cells that the spec does not have.

    Raises:
        StoreError: the records cannot be read, or are of a newer qeval.
        UsageError: ``unlisted``, and the spec has none of the cells: it is of another folder.
    """
    records = store.numbered()
    shown = {id(record) for record in latest(r for _, r in records).values()}
    last: dict[str, int] = {record.key: i for i, record in records}
    at = {record.key: i for i, record in records if id(record) in shown}
    old = [i for i, record in records if i < at[record.key]]
    aside = [
        path
        for key, line in at.items()
        if line == last[key]  # else the last try failed, and these are what is shown
        for path in sorted((store.folder / "cells").glob(f"{key[:16]}.before-*"))
    ]
    gone: list[tuple[int, Record]] = []
    if unlisted and experiment is not None:
        asked = named_by(experiment)
        evals = [(i, r) for i, r in records if r.kind == "eval" and i not in old]
        gone = [(i, r) for i, r in evals if not asked(r)]
        if gone and len(gone) == len(evals):
            raise UsageError(
                f"{store.folder}: the spec {experiment.name} has none of its cells: name the spec of "
                "these results"
            )
    keys = {record.key for _, record in gone}
    left = [path for key in sorted(keys) for path in _files(store.folder, key) if path not in aside]
    stays = [r for _, r in records if r.key not in keys]
    cached = _only_of([r for _, r in gone], stays, store.folder, cache)
    moved = sorted({i for i, _ in gone})
    lines = store.raw_lines()
    return Prunable(
        store.folder,
        tuple(old),
        tuple(moved),
        tuple(dict.fromkeys(str((r.cell.get("quantization") or {}).get("label")) for _, r in gone)),
        tuple(aside),
        tuple(left),
        tuple(cached),
        {
            "superseded": sum(len(lines[i]) + 1 for i in old),
            "put_aside": sum(map(_size, aside)),
            "unlisted": sum(map(_size, left)),
            "cached": sum(c.n_bytes for c in cached),
        },
    )


def prune(store: Store, found: Prunable, cache: ArtifactCache) -> None:
    """Remove it. Call with the store locked since ``prunable``.

    Raises:
        StoreError: something cannot be written or removed. Records that move are in their new file
            before they leave the old one.
    """
    lines = store.raw_lines()
    try:
        if found.unlisted:
            with (store.folder / MOVED).open("ab") as file:
                file.write(b"".join(lines[i] + b"\n" for i in found.unlisted))
                file.flush()
                os.fsync(file.fileno())
        if gone := {*found.superseded, *found.unlisted}:
            kept = [line for i, line in enumerate(lines) if i not in gone]
            write_atomic(store.path, b"\n".join(kept))
        for path in (*found.put_aside, *found.left):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as err:
        raise StoreError(disk_message(store.folder, err)) from err
    cache.remove(found.cached)


def running_beside(folder: Path) -> list[Path]:
    """The results folders beside this one that a run uses now."""
    beside = sorted(path.parent for path in folder.resolve().parent.glob("*/lock"))
    return [path for path in beside if path != folder.resolve() and Store(path).in_use()]


def n_unlisted(store: Store, experiment: Experiment) -> int:
    """How many cells with a record the spec does not have."""
    asked = named_by(experiment)
    return sum(not asked(r) for r in store.latest().values() if r.kind == "eval")


def _files(folder: Path, key: str) -> Iterable[Path]:
    yield from sorted((folder / "cells").glob(f"{key[:16]}*"))
    yield from sorted((folder / "jobs").glob(f"eval-{key[:16]}.*"))


def _only_of(
    gone: Sequence[Record], stays: Sequence[Record], folder: Path, cache: ArtifactCache
) -> list[CachedArtifact]:
    """The cached models that these records were measured on, and no other record here or in the
    folders beside; none while a run is going on in one of them."""
    if not gone or running_beside(folder):
        return []
    used = {_artifact(record) for record in stays if record.kind == "eval"}
    for path in folder.resolve().parent.glob("*/records.jsonl"):
        if path.parent != folder.resolve():
            with suppress(StoreError):
                used |= {_artifact(record) for record in Store(path.parent).read()}
    wanted = {_artifact(record) for record in gone} - used
    return [entry for entry in cache.entries() if entry.key in wanted]


def _artifact(record: Record) -> str:
    """The key of the cached model that a record was measured on; "" where it was not of the cache."""
    parts = Path(str((record.artifact or {}).get("path", ""))).parts
    at = [i for i, part in enumerate(parts[:-1]) if part == "artifacts"]
    return parts[at[-1] + 1] if at else ""


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(p.lstat().st_size for p in files if not p.is_dir())
