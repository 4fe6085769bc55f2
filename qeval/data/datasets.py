"""Evaluation and calibration texts, and tables of problems, by name: the same documents wherever they
come from.

A name of ``data/manifest.yaml`` is looked up in a data directory first, then on the hub; ``pydoc``
comes with CPython, ``file:PATH`` is the user's own text. What comes back is the dataset's rows; how
rows are joined and cut belongs to a protocol and so to a task.

Row forms, equal to those that the `datasets` library gives of the hub's files:

- WikiText: a line of the raw file that holds only white space is ``""``, every other line keeps its
  newline, so that ``"".join(" \\n" if row == "" else row for row in rows)`` is the raw file again.
- Penn Treebank: Mikolov's lines without the space at either end; ``<unk>`` and ``N`` stay.
- C4, LAMBADA, ``.jsonl`` files: the ``text`` of each line.
- Tables (MBPP; ``column: null`` in the manifest): each row whole, as JSON with its keys sorted, so that
  a file and the hub give the same documents. They are a task's problems and not text to measure.

A text whose sha256 is not the one in the manifest is refused under that name: a number measured on it
would carry a false label. ``file:PATH`` measures it under its own.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from qeval.core.errors import (
    DataError,
    HubError,
    MissingExtraError,
    NotHereError,
    QevalError,
    did_you_mean,
    short,
    with_class,
)
from qeval.core.extras import require
from qeval.core.files import exists, not_regular, user_path
from qeval.data.files import read_jsonl, read_rows, read_text

if TYPE_CHECKING:
    from qeval.hub.download import Plan

FILE_PREFIX = "file:"
_READ_WHOLE = 32 * 2**20  # bytes of a file that is read before the run to see what is in it
DATA_DIR_VARIABLE = "QEVAL_DATA_DIR"


@dataclass(frozen=True)
class Corpus:
    """The documents of one dataset, in its order."""

    name: str
    documents: tuple[str, ...]
    sha256: str  # documents_sha256(documents)
    origin: str  # where they were found, for the record

    def place(self, index: int) -> str:
        """Where a document is, for a message: ``FILE:LINE``, or a row of anything else."""
        lines = self.origin.endswith(".jsonl")
        return f"{self.origin}:{index + 1}" if lines else f"{self.origin} row {index + 1}"


@dataclass(frozen=True)
class LocalFile:
    """A file that may hold a dataset, relative to the data directory."""

    path: str
    sha256: str | None = None  # of the file's bytes


@dataclass(frozen=True)
class Hub:
    """A dataset repository, and its files that hold the documents, in their order."""

    path: str
    files: tuple[str, ...]
    revision: str | None = None

    def __str__(self) -> str:
        at = f" @{self.revision}" if self.revision else ""
        return f"{self.path} {', '.join(self.files)}{at}"


@dataclass(frozen=True)
class Dataset:
    """One entry of the manifest."""

    name: str
    about: str
    rows: int | None
    sha256: str | None  # of the documents
    licence: str
    redistribute: bool
    files: tuple[LocalFile, ...]
    hub: Hub | None = None
    column: str | None = "text"  # None: a table
    url: str | None = None  # the first of the files, as published


def documents_sha256(documents: Iterable[str]) -> str:
    """Hex sha256 of the documents' UTF-8 joined with a NUL: one digest for every file format."""
    digest = hashlib.sha256()
    for i, document in enumerate(documents):
        digest.update(b"\x00" * (i > 0) + document.encode())
    return digest.hexdigest()


@cache
def manifest() -> dict[str, Dataset]:
    """All named datasets, read from the wheel's copy or from the checkout's ``data/``."""
    here = Path(__file__).resolve().parents[1]  # in another environment qeval is a link
    wheel, checkout = here / "_data" / "manifest.yaml", here.parent / "data" / "manifest.yaml"
    path = wheel if wheel.is_file() else checkout
    entries: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {name: _dataset(name, entry) for name, entry in entries.items()}


def _dataset(name: str, entry: dict[str, Any]) -> Dataset:
    hub = entry.get("hub")
    files = tuple(LocalFile(**f) for f in entry["files"])
    hub = Hub(**{**hub, "files": tuple(hub["files"])}) if hub else None
    return Dataset(**{**entry, "name": name, "files": files, "hub": hub})


def dataset(name: str) -> Dataset:
    """The manifest's entry of a name.

    Raises:
        DataError: no such name; the message suggests the closest one.
    """
    if name not in manifest():
        raise DataError(
            f"unknown dataset {name!r}{did_you_mean(name, manifest())}; "
            f"your own text is {FILE_PREFIX}PATH"
        )
    return manifest()[name]


def text_dataset(name: str) -> Dataset:
    """The manifest's entry of a text.

    Raises:
        DataError: no such name, or it is a table.
    """
    entry = dataset(name)
    if entry.column is None:
        raise DataError(f"dataset {name!r} is a table of problems, not a text; known texts: {_texts()}")
    return entry


def _texts() -> str:
    return ", ".join(name for name, entry in manifest().items() if entry.column is not None)


class DataSource:
    """Where this run finds its texts: a data directory, then the hub.

    ``data_dir`` defaults to the environment variable QEVAL_DATA_DIR. ``offline`` leaves out the hub and
    its cache; HF_HUB_OFFLINE leaves out the hub. Without ``download``, what the hub's cache lacks is a
    NotHereError.
    """

    def __init__(
        self, data_dir: Path | None = None, *, offline: bool = False, download: bool = True
    ) -> None:
        named = os.environ.get(DATA_DIR_VARIABLE) or None
        self.data_dir = data_dir or (Path(named) if named else None)
        self.offline = offline
        self.download = download

    def load(self, name: str) -> Corpus:
        """The documents of a text, checked against the manifest.

        Raises:
            DataError: unknown, nowhere to be found, unreadable, empty, or not the text of that name.
        """
        if name.startswith(FILE_PREFIX):
            return _file_corpus(name)
        return self.read(text_dataset(name))

    def table(self, name: str) -> Corpus:
        """A table, each of its rows a JSON object.

        Raises:
            DataError: as ``load``.
        """
        return self.read(dataset(name))

    def read(self, entry: Dataset) -> Corpus:
        """A text or a table of the manifest. Raises DataError as ``load``."""
        if entry.name == "pydoc":
            return checked(entry, _pydoc(), f"CPython {platform.python_version()} pydoc_data.topics")
        path = self.find(entry)
        if path is not None:
            return checked(entry, read_rows(path, entry.column), str(path))
        if entry.hub is None or self.offline:
            raise DataError(_not_found(entry, self.searched(entry)))
        if not self.download:
            self._planned(entry, entry.hub)
        return from_hub(entry, entry.hub, self.searched(entry))

    def _planned(self, entry: Dataset, hub: Hub) -> int:
        """The bytes of the hub's files, which are all in its cache.

        Raises:
            DataError: they never will be, with the reason and the fix.
            NotHereError: they would be downloaded.
        """
        plan = self.plan(entry.name)
        assert plan is not None  # the hub would be asked
        if plan.out_of_reach:
            raise DataError(_not_found(entry, self.searched(entry), DataError(plan.out_of_reach)))
        if plan.missing:
            raise NotHereError(f"{entry.name}: {plan}", partial(fetch, entry, self.searched(entry)))
        return sum(file.n_bytes for file in plan.files)

    def check(self, name: str) -> None:
        """Whether ``load`` will give the text, found without a download, and without reading a large
        file whole.

        Raises:
            DataError: it will not, with the reason and the fix.
            NotHereError: it would be downloaded.
        """
        if name.startswith(FILE_PREFIX):
            _file_corpus(name)
            return
        entry = text_dataset(name)
        path = self.find(entry)
        if path is not None:
            size = path.stat().st_size
        elif entry.name == "pydoc" or entry.hub is None or self.offline:
            size = 0
        else:
            size = self._planned(entry, entry.hub)
        if size <= _READ_WHOLE:
            self.read(entry)

    def plan(self, name: str) -> Plan | None:
        """What ``load`` or ``table`` would download; None for what needs no hub. Nothing is read.

        Raises:
            DataError: unknown, nowhere to be found, or the hub refuses it.
        """
        if name.startswith(FILE_PREFIX):
            _own_file(name)
            return None
        entry = dataset(name)
        if entry.name == "pydoc" or self.find(entry) is not None:
            return None
        if entry.hub is None or self.offline:
            raise DataError(_not_found(entry, self.searched(entry)))
        try:
            _require_hub(entry.hub)
            from qeval.hub.download import planned_files

            return planned_files(entry.hub.path, entry.hub.files, entry.hub.revision)
        except (HubError, MissingExtraError) as err:
            raise DataError(_not_found(entry, self.searched(entry), err)) from err

    def find(self, entry: Dataset) -> Path | None:
        """The first of the dataset's files that the data directory holds.

        Raises:
            DataError: the data directory itself does not exist.
        """
        if self.data_dir is None:
            return None
        if not self.data_dir.is_dir():
            raise DataError(
                f"data directory {self.data_dir} does not exist: correct --data-dir, data_dir: in the "
                f"spec, or {DATA_DIR_VARIABLE}"
            )
        paths = (self.data_dir / f.path for f in entry.files)
        return next((path for path in paths if path.is_file()), None)

    def searched(self, entry: Dataset) -> str:
        """The local part of "not found in ..."."""
        if self.data_dir is None:
            return "no data directory was given"
        return f"{self.data_dir} has none of {', '.join(f.path for f in entry.files)}"


def _not_found(entry: Dataset, searched: str, err: QevalError | None = None) -> str:
    """``err`` says why the hub did not give it; None: it was not asked."""
    if entry.hub is None:
        fix = f"put {entry.files[0].path} under --data-dir"
    else:
        fix = (
            f"run `qeval data fetch {entry.name}` on a machine that reaches the hub and give that "
            f"folder as --data-dir (or {DATA_DIR_VARIABLE})"
        )
    if entry.url is not None:
        fix += f", or save {entry.url} there as {entry.files[0].path}"
    hub = "" if err is None else f", and the hub did not give it: {err}; or"
    return f"dataset {entry.name!r} not found: {searched}{hub or ';'} {fix}"


def checked(
    entry: Dataset, documents: tuple[str, ...], origin: str, fix: str = "remove or replace the file"
) -> Corpus:
    """The corpus, if the documents are those that the manifest names.

    Raises:
        DataError: no documents, another number of them, or another sha256.
    """
    if not any(documents):
        raise DataError(f"dataset {entry.name!r} is empty ({origin})")
    sha256 = documents_sha256(documents)
    known = entry.sha256 is not None
    if known and sha256 != entry.sha256:
        found, expected = f"documents' sha256 {sha256}", str(entry.sha256)
    elif not known and entry.rows not in (None, len(documents)):
        found, expected = f"{len(documents)} documents", str(entry.rows)
    else:
        return Corpus(entry.name, documents, sha256, origin)
    raise DataError(
        f"{origin} is not {entry.name!r}: {found}, expected {expected}; {fix}, or measure it under its "
        f"own name with {FILE_PREFIX}PATH"
    )


def _file_corpus(name: str) -> Corpus:
    path = _own_file(name)
    documents = read_jsonl(path) if path.suffix == ".jsonl" else (read_text(path),)
    if not any(document.strip() for document in documents):
        raise DataError(f"dataset {name!r} is empty: {path.absolute()} holds no text")
    return Corpus(name, documents, documents_sha256(documents), str(path.absolute()))


def _own_file(name: str) -> Path:
    path = user_path(name.removeprefix(FILE_PREFIX))
    if not exists(path):
        raise DataError(f"dataset {short(name)!r}: no such file: {short(str(path.absolute()), 300)}")
    if not path.is_file():
        told = not_regular(path.absolute(), path.stat().st_mode)
        raise DataError(f"dataset {name!r}: {told}")
    return path


def _pydoc() -> tuple[str, ...]:
    """The topics' texts by topic name. They change with CPython's version: compare their sha256."""
    try:
        from pydoc_data.topics import topics
    except ImportError as err:
        raise DataError(
            "dataset 'pydoc': this Python has no pydoc_data (a stripped build); use file:PATH"
        ) from err
    return tuple(topics[key] for key in sorted(topics))


# The hub


def from_hub(entry: Dataset, hub: Hub, searched: str) -> Corpus:
    """The documents of the hub's files. ``searched`` says where they were not found before.

    Raises:
        DataError: out of reach, or not the text that the manifest names.
    """
    paths = fetch(entry, searched)
    documents = [row for path in paths for row in read_rows(path, entry.column)]
    files = " ".join(str(path.resolve()) for path in paths)
    return checked(entry, tuple(documents), f"hub {hub}", f"remove {files} and run again")


def fetch(entry: Dataset, searched: str) -> list[Path]:
    """The hub's files, in its cache. Raises DataError as ``from_hub``."""
    assert entry.hub is not None  # else nobody asks for them
    try:
        _require_hub(entry.hub)
        return [_hub_file(entry.hub, file) for file in entry.hub.files]
    except (HubError, MissingExtraError) as err:
        raise DataError(_not_found(entry, searched, err)) from err


def _require_hub(hub: Hub) -> None:
    require("hub", "huggingface_hub", *["pyarrow"] * any(f.endswith(".parquet") for f in hub.files))


def _hub_file(hub: Hub, file: str) -> Path:
    try:
        from qeval.hub.download import download_file
    except ImportError:  # an environment of its own, with a huggingface_hub of before 1.25
        return _plain_download(hub, file)
    return download_file(hub.path, file, hub.revision)


def _plain_download(hub: Hub, file: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(hub.path, file, repo_type="dataset", revision=hub.revision))
    except Exception as err:  # of an older huggingface_hub, of requests
        raise HubError(f"dataset {hub.path} {file}", with_class(err)) from err
