"""Models and files of a hub (huggingface.co, or HF_ENDPOINT): what is missing here, and its download.

Imports huggingface_hub: call ``extras.require("hub", "huggingface_hub")`` first.

huggingface_hub keeps what it downloads in its cache (HF_HOME)::

    models--ORG--NAME/refs/REVISION            the commit of a branch or tag
                      snapshots/COMMIT/FILE -> ../../blobs/HASH
                      trees/COMMIT.json        the commit's files

A commit's files never change, so one that is complete in the cache needs no hub. For a branch or tag
the hub is asked which commit it is now; if it is out of reach, the cache's answer is used, and a line
says so.
"""

from __future__ import annotations

import glob
import json
import re
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import (
    HfApi,
    constants,
    get_cached_repo_tree,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile, RepoFolder

from qeval.core.console import say
from qeval.core.errors import HubError, ModelError, StoreError
from qeval.core.files import write_atomic
from qeval.core.units import human_bytes
from qeval.hub.client import Place, explain, prepare, stoppable
from qeval.hub.files import configures, needed
from qeval.hub.files import weights as weights_of
from qeval.hub.gguf import gguf_model, split_name

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHORT_COMMIT = re.compile(r"[0-9a-f]{7,40}")
_REVISION = re.compile(r"(?!.*\.\.)\w[\w./-]*")  # a name of git's that is a path below refs/


@dataclass(frozen=True)
class HubFile:
    name: str  # path in the repository
    n_bytes: int
    here: bool  # in the cache


@dataclass(frozen=True)
class Plan:
    """What a run needs of one repository.

    ``out_of_reach``: the run would fail, because the hub cannot be asked and the cache has no copy;
    the one line that it would fail with. ``files`` is then what is known of them, or empty.
    """

    place: Place
    commit: str | None
    files: tuple[HubFile, ...]
    out_of_reach: str | None = None

    @property
    def missing(self) -> tuple[HubFile, ...]:
        """What would be downloaded."""
        return tuple(file for file in self.files if not file.here)

    @property
    def n_bytes(self) -> int:
        """To download."""
        return sum(file.n_bytes for file in self.missing)

    def __str__(self) -> str:
        if self.out_of_reach:
            return self.out_of_reach
        if not self.missing:
            return f"{self.place}: in the cache"
        files = "1 file" if len(self.missing) == 1 else f"{len(self.missing)} files"
        return f"{self.place}: {files} to download, {human_bytes(self.n_bytes)}"


@dataclass(frozen=True)
class _Listed:
    n_bytes: int
    blob: str  # its name in the cache


class _Cache:
    """One repository's folder in huggingface_hub's cache."""

    def __init__(self, place: Place) -> None:
        name = f"{place.kind}s--{place.repo.replace('/', '--')}"
        self.folder = Path(constants.HF_HUB_CACHE) / name

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def has(self, commit: str, name: str, listed: _Listed) -> bool:
        """Of this commit, or of another one whose file is the same."""
        blob = self.folder / "blobs" / listed.blob
        return (self.snapshot(commit) / name).is_file() or blob.is_file()

    def commit(self, revision: str | None) -> str | None:
        """The commit that a branch, tag or beginning of a commit stood for when it was last here."""
        name = revision or constants.DEFAULT_REVISION
        if not _REVISION.fullmatch(name):
            return None
        with suppress(OSError, UnicodeDecodeError):
            found = (self.folder / "refs" / name).read_text(encoding="utf-8").strip()
            return found if _COMMIT.fullmatch(found) else None
        commits = self.folder.glob(f"snapshots/{name}*") if _SHORT_COMMIT.fullmatch(name) else ()
        names = [path.name for path in commits]
        return names[0] if len(names) == 1 else None

    def remember(self, revision: str | None, commit: str) -> None:
        """Once its files are here: offline, a branch must not lead to what was never downloaded."""
        name = revision or constants.DEFAULT_REVISION
        if name != commit and _REVISION.fullmatch(name) and self.commit(name) != commit:
            with suppress(StoreError):  # a cache that is read only
                write_atomic(self.folder / "refs" / name, commit)


# Models


def planned_model(name: str, revision: str | None = None, *, weights: bool = True) -> Plan:
    """What ``download_model`` would download, from the hub's listing; nothing is written.

    Raises:
        HubError: the hub refuses it: no such model or revision, gated, a token that is not valid.
        ModelError: it has no such GGUF model, or several.
    """
    place, asked = _place(name, revision)
    prepare(place)
    cache = _Cache(place)
    commit = None
    try:
        commit = _commit(place, cache)
        listing = _listing(place, commit)
    except HubError as err:
        if err.refused:
            raise
        here = commit is not None and cache.snapshot(commit).is_dir()
        return Plan(place, commit, (), out_of_reach=None if here else str(err))
    place, names = _wanted(place, listing, asked, weights)
    wanted = ((name, listing[name]) for name in names)
    files = (HubFile(n, x.n_bytes, cache.has(commit, n, x)) for n, x in wanted)
    plan = Plan(place, commit, tuple(files))
    try:
        _check_access(plan)
    except HubError as err:
        if err.refused:
            raise
        return replace(plan, out_of_reach=str(err))
    return plan


def download_model(name: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """The folder of the model's files, named by their commit, or its .gguf file in there (of a split
    one the first part); downloaded if the cache lacks them.

    Args:
        name: ``ORG/NAME``, ``ORG/NAME:TYPE`` or ``ORG/NAME/FILE.gguf``.
        weights: False: of ``ORG/NAME`` its configuration and tokenizer only.

    Raises:
        HubError: it cannot be downloaded; with the reason and the fix.
        ModelError: it has no such GGUF model, or several.
    """
    place, asked = _place(name, revision)
    prepare(place)
    cache = _Cache(place)
    commit = _commit(place, cache)
    folder = cache.snapshot(commit)
    try:
        listing = _listing(place, commit)
    except HubError as err:
        if err.refused or not folder.is_dir():
            raise
        try:  # without a listing nobody knows whether all is there: check_model will say
            return _in(folder, _gguf(place, _files(folder), asked, weights))
        except ModelError:
            raise err from None
    place, names = _wanted(place, listing, asked, weights)
    _fetch(place, cache, commit, {name: listing[name] for name in names})
    shards = _shards(folder) & set(listing) if weights and not place.file else ()
    _fetch(place, cache, commit, {name: listing[name] for name in shards})
    cache.remember(revision, commit)
    return _in(folder, names if place.file else [])


def _place(name: str, revision: str | None) -> tuple[Place, str | None]:
    """The repository, and which of its GGUF models is asked for."""
    repo, asked = split_name(name) or (name, None)
    return Place(repo, "model", revision), asked


def _in(folder: Path, gguf: list[str]) -> Path:
    return folder / gguf[0] if gguf else folder


def _files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def _commit(place: Place, cache: _Cache) -> str:
    """The commit that is asked for: the hub's answer, else the cache's."""
    if _COMMIT.fullmatch(place.revision or ""):
        return str(place.revision)
    try:
        commit = HfApi().model_info(place.repo, revision=place.revision).sha
        if not _COMMIT.fullmatch(commit or ""):
            raise ValueError(f"its commit is {commit!r}")
        return str(commit)
    except Exception as err:  # of huggingface_hub, of httpx, of an answer in no known form
        kept = cache.commit(place.revision)
        shortened = _SHORT_COMMIT.fullmatch(place.revision or "")
        if kept is None or (isinstance(err, RevisionNotFoundError) and not shortened):
            raise explain(err, place) from err
        if not isinstance(err, OfflineModeIsEnabled):
            say(f"{explain(err, place)}; going on with the cache's copy, commit {kept[:12]}")
        return kept


def _listing(place: Place, commit: str) -> dict[str, _Listed]:
    """The files of a commit: the cache's listing, else the hub's."""
    what: dict[str, Any] = {"repo_type": place.kind, "revision": commit}
    try:
        with suppress(CachedRepoTreeNotFoundError):
            return _entries(get_cached_repo_tree(place.repo, **what))
        return _entries(HfApi().list_repo_tree(place.repo, **what, recursive=True))
    except Exception as err:
        raise explain(err, place) from err


def _wanted(
    place: Place, listing: dict[str, _Listed], asked: str | None, with_weights: bool
) -> tuple[Place, list[str]]:
    """The files that a model needs; the place names the (first) file of a GGUF model.

    Raises:
        HubError: the repository has no weights that qeval loads; before anything is fetched.
        ModelError: it has no such GGUF model, or several.
    """
    if gguf := _gguf(place, listing, asked, with_weights):
        return replace(place, file=gguf[0]), gguf
    if not with_weights:
        return place, sorted(name for name in listing if configures(name))
    if not weights_of(set(listing)):
        reason = "no weights (model.safetensors, its index, pytorch_model.bin or .gguf files)"
        raise HubError(place, reason, refused=True)
    return place, sorted(needed(listing))


def _gguf(place: Place, names: Iterable[str], asked: str | None, with_weights: bool) -> list[str]:
    return gguf_model(place.repo, names, asked) if with_weights or asked else []


def _entries(tree: Iterable[RepoFile | RepoFolder]) -> dict[str, _Listed]:
    files = (item for item in tree if isinstance(item, RepoFile))
    return {f.path: _Listed(f.size, f.lfs.sha256 if f.lfs else f.blob_id) for f in files}


def _fetch(place: Place, cache: _Cache, commit: str, files: dict[str, _Listed]) -> None:
    """Download those of the files that are not in the snapshot yet."""
    missing = sorted(name for name in files if not (cache.snapshot(commit) / name).is_file())
    if not missing:
        return
    try:
        if constants.is_offline_mode():
            raise OfflineModeIsEnabled
        fetched = (name for name in missing if not cache.has(commit, name, files[name]))
        _check_space(place, cache.folder, sum(files[name].n_bytes for name in fetched))
        patterns = [glob.escape(name) for name in missing]
        what: dict[str, Any] = {"repo_type": place.kind, "revision": commit}
        with stoppable():
            snapshot_download(place.repo, **what, allow_patterns=patterns)
    except Exception as err:
        one = place.file or len(missing) == 1
        raise explain(err, replace(place, file=missing[0]) if one else place) from err


def _shards(folder: Path) -> set[str]:
    """What the index of the weights names, whatever the files are called."""
    for index in folder.glob("*.index.json"):
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # weight_files says
            return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return set()


def _check_access(plan: Plan) -> None:
    """A gated repository shows its listing to everybody, its files to few: ask for one of them."""
    if not plan.missing:
        return
    place, first = plan.place, plan.missing[0].name
    try:
        get_hf_file_metadata(hf_hub_url(place.repo, first, revision=plan.commit))
    except Exception as err:
        raise explain(err, replace(place, file=first) if place.file else place) from err


def _check_space(place: Place, folder: Path, n_bytes: int) -> None:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < n_bytes:
        reason = f"{human_bytes(n_bytes)} to download, {human_bytes(free)} free in {there}"
        raise HubError(place, f"{reason}: free some, or set HF_HOME to a folder on another disk")


# Files of datasets


def planned_files(repo: str, files: Sequence[str], revision: str | None = None) -> Plan:
    """What ``download_file`` would download of a dataset; nothing is written.

    Raises:
        HubError: the hub refuses it: no such dataset, revision or file, gated.
    """
    found: list[HubFile] = []
    place, commit = Place(repo, "dataset", revision), None
    for file in files:
        try:
            info = _file(replace(place, file=file), dry_run=True)
        except HubError as err:
            if err.refused:
                raise
            return Plan(place, commit, tuple(found), out_of_reach=str(err))
        commit = info.commit_hash
        found.append(HubFile(file, info.file_size or 0, not info.will_download))
    return Plan(place, commit, tuple(found))


def download_file(repo: str, file: str, revision: str | None = None) -> Path:
    """A file of a dataset, in the cache.

    Raises:
        HubError: it cannot be downloaded; with the reason and the fix.
    """
    return Path(_file(Place(repo, "dataset", revision, file)))


def _file(place: Place, **options: object) -> Any:
    """hf_hub_download's answer; without a hub, for the commit that a branch was when last here."""
    what: dict[str, Any] = {"repo_type": place.kind, "revision": place.revision, **options}
    prepare(place)
    try:
        return hf_hub_download(place.repo, str(place.file), **what)
    except Exception as err:
        problem = explain(err, place)
        if problem.refused:
            raise problem from err
    with suppress(Exception):
        kept = hf_hub_download(place.repo, str(place.file), **what, local_files_only=True)
        say(f"{problem}; going on with the cache's copy")
        return kept
    raise problem
