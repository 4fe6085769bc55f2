"""The cache of quantized models: ``<cache_dir>/artifacts/<key>/`` with ``artifact.json`` inside.

A folder appears under its key by one rename, after everything in it was written; a build that dies
leaves only a ``.building-*`` folder, which no one takes for an artifact and which ``sweep`` removes,
and what a long build keeps so that it can be continued (``.unfinished-*``).
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from qeval.core import __version__
from qeval.core.artifact import Artifact
from qeval.core.errors import StoreError, UsageError
from qeval.core.files import disk_message

_UNFINISHED = ".unfinished-"


_DAMAGED = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
)  # of artifact.json


@dataclass(frozen=True)
class CachedArtifact:
    key: str
    folder: Path
    name: str  # model · quantization; what is wrong, where artifact.json does not say it
    n_bytes: int
    last_used: float  # seconds since the epoch


class ArtifactCache:
    def __init__(self, cache_dir: Path) -> None:
        self.folder = cache_dir / "artifacts"

    def load(self, key: str) -> Artifact | None:
        """The artifact, or None where it was never built whole; marks it as used now."""
        artifact = self.peek(key)
        try:
            if artifact is not None:
                os.utime(self.folder / key / "artifact.json")
        except OSError:
            return artifact  # a cache that may only be read is still a cache
        return artifact

    def peek(self, key: str) -> Artifact | None:
        """``load`` without marking it."""
        manifest = self.folder / key / "artifact.json"
        try:
            artifact = Artifact.from_json(json.loads(manifest.read_text(encoding="utf-8"))["artifact"])
        except _DAMAGED:
            return None
        artifact = replace(artifact, path=manifest.parent / artifact.path)
        return artifact if artifact.path.exists() else None

    @contextmanager
    def building(self, key: str) -> Iterator[Path]:
        """An empty folder to build in. Two processes that want one key wait for each other.

        Raises:
            StoreError: the cache cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / f".lock-{key[:16]}").open("w")  # stays: unlinking would race
        except OSError as err:
            raise StoreError(disk_message(self.folder, err)) from err
        import fcntl  # not on every system; only building needs a lock

        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.sweep(key)
            out = self.folder / f".building-{key[:16]}-{secrets.token_hex(4)}"
            try:
                out.mkdir()  # not mkdtemp, whose folders are for one user alone
            except OSError as err:
                raise StoreError(disk_message(self.folder, err)) from err
            try:
                yield out
            finally:
                shutil.rmtree(out, ignore_errors=True)

    def unfinished(self, key: str) -> Path:
        """The folder where a build of ``key`` may keep work for the next attempt."""
        return self.folder / f"{_UNFINISHED}{key[:16]}"

    def publish(
        self, key: str, out: Path, artifact: Artifact, description: dict[str, object]
    ) -> Artifact:
        """Rename a finished build into place; its path becomes relative to the folder on disk. A model
        folder inside it gets the manifest, too, as ``qeval.json``: copied elsewhere, it still says what
        made it."""
        relative = artifact.path.resolve().relative_to(out.resolve())
        manifest = {
            "qeval": __version__,
            "key": key,
            "description": description,
            "artifact": {**artifact.to_json(), "path": str(relative)},
        }
        text = json.dumps(manifest, indent=1)
        try:
            if artifact.path.is_dir():
                (artifact.path / "qeval.json").write_text(text, encoding="utf-8")
            (out / "artifact.json").write_text(text, encoding="utf-8")
            _share(out)
            if (self.folder / key).exists():  # damaged, or ``load`` would have had it
                _remove(self.folder / key)
            out.rename(self.folder / key)
            shutil.rmtree(self.unfinished(key), ignore_errors=True)
        except OSError as err:
            raise StoreError(disk_message(self.folder, err)) from err
        return replace(artifact, path=self.folder / key / relative)

    def entries(self) -> list[CachedArtifact]:
        """All of them, damaged ones, too."""
        folders = sorted(p for p in self.folder.glob("[0-9a-f]*") if p.is_dir())
        return [_entry(folder) for folder in folders]

    def named(self, prefixes: tuple[str, ...]) -> list[CachedArtifact]:
        """The artifacts whose keys begin with the prefixes.

        Raises:
            UsageError: a prefix fits none, or several.
        """
        cached = self.entries()
        chosen = []
        for prefix in prefixes:
            fitting = [c for c in cached if c.key.startswith(prefix)]
            if len(fitting) != 1:
                raise UsageError(f"{prefix}: fits {len(fitting)} cached artifacts (`qeval cache list`)")
            chosen += fitting
        return list(dict.fromkeys(chosen))

    def remove(self, chosen: Sequence[CachedArtifact]) -> None:
        """Raises StoreError where one cannot be removed; those before it are gone by then."""
        for item in chosen:
            try:
                _remove(item.folder)
            except OSError as err:
                raise StoreError(disk_message(item.folder, err)) from err

    def older_than(self, days: float) -> list[CachedArtifact]:
        limit = time.time() - days * 86400
        return [c for c in self.entries() if c.last_used < limit]

    def unfinished_bytes(self) -> list[int]:
        """The size of what each unfinished build keeps."""
        return [_size(folder) for folder in self.folder.glob(f"{_UNFINISHED}*")]

    def remove_unfinished(self, days: float = 0.0) -> int:
        """Remove what builds keep that nobody continued for so long; the number of bytes."""
        limit, freed = time.time() - days * 86400, 0
        for folder in self.folder.glob(f"{_UNFINISHED}*"):
            if folder.stat().st_mtime <= limit:
                freed += _size(folder)
                shutil.rmtree(folder)
        return freed

    def sweep(self, key: str) -> None:
        """Remove what killed builds of this key left behind (call with the key's lock held)."""
        for leftover in self.folder.glob(f".building-{key[:16]}-*"):
            shutil.rmtree(leftover, ignore_errors=True)


def _entry(folder: Path) -> CachedArtifact:
    manifest = folder / "artifact.json"
    try:
        description = json.loads(manifest.read_text(encoding="utf-8"))["description"]
        name = f"{description['model']['id']} · {description['quantization']['label']}"
    except _DAMAGED:
        name = (
            "damaged: its artifact.json cannot be read; it is never used, and made again where needed"
        )
    used = (manifest if manifest.exists() else folder).stat().st_mtime
    return CachedArtifact(folder.name, folder, name, _size(folder), used)


def _share(folder: Path) -> None:
    """Give what libraries wrote the permissions that the umask gives, as the folder itself has them:
    safetensors makes files for one user alone, copies keep those of their originals."""
    given = folder.stat().st_mode
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            path.chmod(stat.S_IMODE(mode) | given & (0o777 if stat.S_ISDIR(mode) else 0o666))


def _remove(folder: Path) -> None:
    """Remove the manifest first, so that a half-removed folder is not taken for a whole one."""
    if folder.is_symlink():  # somebody put it elsewhere: what it leads to is theirs
        folder.unlink()
        return
    (folder / "artifact.json").unlink(missing_ok=True)
    shutil.rmtree(folder)


def _size(folder: Path) -> int:
    return sum(p.lstat().st_size for p in folder.rglob("*") if not p.is_dir())
