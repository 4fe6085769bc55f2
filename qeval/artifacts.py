"""The cache of quantized models: ``<cache_dir>/artifacts/<key>/`` with ``artifact.json`` inside.

A folder appears under its key by one rename, after everything in it was written; a build that dies
leaves only a ``.building-*`` folder, which no one takes for an artifact and which ``sweep`` removes,
and what a long build keeps to go on from (``.unfinished-*``).
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qeval import __version__
from qeval.errors import StoreError, UsageError
from qeval.files import disk_message, user_path
from qeval.quant.base import Artifact

_UNFINISHED = ".unfinished-"


def default_cache_dir() -> Path:
    """``QEVAL_CACHE_DIR``, else ``$XDG_CACHE_HOME/qeval``, else ``~/.cache/qeval``."""
    if named := os.environ.get("QEVAL_CACHE_DIR"):
        return Path(named)
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "qeval"


@dataclass(frozen=True)
class CachedArtifact:
    key: str
    folder: Path
    description: dict[str, Any]  # model id, method, options, as the build job had them
    n_bytes: int
    last_used: float  # seconds since the epoch


class ArtifactCache:
    def __init__(self, cache_dir: Path) -> None:
        self.folder = cache_dir / "artifacts"

    def load(self, key: str) -> Artifact | None:
        """The artifact, or None where it was never built whole; marks it as used now."""
        manifest = self.folder / key / "artifact.json"
        try:
            data = json.loads(manifest.read_text(encoding="utf-8"))["artifact"]
        except (OSError, ValueError, KeyError):
            return None
        artifact = Artifact.from_json(data)
        artifact = replace(artifact, path=manifest.parent / artifact.path)
        if not artifact.path.exists():
            return None
        try:
            os.utime(manifest)
        except OSError:
            return artifact  # a cache that may only be read is still a cache
        return artifact

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
            out = Path(tempfile.mkdtemp(dir=self.folder, prefix=f".building-{key[:16]}-"))
            try:
                yield out
            finally:
                shutil.rmtree(out, ignore_errors=True)

    def unfinished(self, key: str) -> Path:
        """Where a build of ``key`` may keep what another attempt need not do again."""
        return self.folder / f"{_UNFINISHED}{key[:16]}"

    def publish(self, key: str, out: Path, artifact: Artifact, description: dict[str, Any]) -> Artifact:
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
            out.rename(self.folder / key)
            shutil.rmtree(self.unfinished(key), ignore_errors=True)
        except OSError as err:
            raise StoreError(disk_message(self.folder, err)) from err
        return replace(artifact, path=self.folder / key / relative)

    def entries(self) -> list[CachedArtifact]:
        found = []
        for manifest in sorted(self.folder.glob("[0-9a-f]*/artifact.json")):
            data = json.loads(manifest.read_text(encoding="utf-8"))
            folder, used = manifest.parent, manifest.stat().st_mtime
            found.append(CachedArtifact(data["key"], folder, data["description"], _size(folder), used))
        return found

    def remove(self, prefixes: tuple[str, ...]) -> list[CachedArtifact]:
        """Remove the artifacts whose keys begin with the prefixes.

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
        for item in chosen:
            shutil.rmtree(item.folder)
        return chosen

    def older_than(self, days: float) -> list[CachedArtifact]:
        limit = time.time() - days * 86400
        return [c for c in self.entries() if c.last_used < limit]

    def unfinished_bytes(self) -> list[int]:
        """The size of what each unfinished build keeps."""
        return [_size(folder) for folder in self.folder.glob(f"{_UNFINISHED}*")]

    def remove_unfinished(self, days: float = 0.0) -> int:
        """Remove what builds keep that nobody went on with for so long; the number of bytes."""
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


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
