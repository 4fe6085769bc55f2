"""What `qeval data list|fetch|verify` do: say which texts are here, download one, check all of them."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qeval.core.errors import DataError
from qeval.core.files import disk_message, file_sha256
from qeval.data.datasets import (
    Corpus,
    Dataset,
    DataSource,
    LocalFile,
    checked,
    dataset,
    documents_sha256,
    from_hub,
    manifest,
)
from qeval.data.files import read_rows


@dataclass(frozen=True)
class Listed:
    """One line of `qeval data list`."""

    entry: Dataset
    where: Literal["local", "python", "hub", "missing"]  # what a run would read
    path: Path | None  # of the local file


@dataclass(frozen=True)
class Fetched:
    """What `qeval data fetch` downloaded, or found there already (``downloaded`` False)."""

    corpus: Corpus
    path: Path
    file_sha256: str
    downloaded: bool


@dataclass(frozen=True)
class Verified:
    """One file under the data directory. ``unknown``: the manifest has no sha256 to compare with."""

    name: str
    path: Path
    status: Literal["ok", "unknown", "wrong"]
    file_sha256: str
    message: str  # why it is wrong, or in what it differs from the published file


def list_datasets(source: DataSource) -> tuple[Listed, ...]:
    """Every named dataset and where a run with this source would find it."""
    return tuple(_listed(source, entry) for entry in manifest().values())


def _listed(source: DataSource, entry: Dataset) -> Listed:
    path = source.find(entry)
    if path is not None:
        return Listed(entry, "local", path)
    if not entry.files:
        return Listed(entry, "python", None)
    return Listed(entry, "missing" if entry.hub is None or source.offline else "hub", None)


def fetch(name: str, data_dir: Path) -> Fetched:
    """Download a dataset from the hub into the layout that ``DataSource`` reads.

    A file that is there is checked and left alone.

    Raises:
        DataError: unknown name, not on the hub, out of reach, another text, or the folder cannot be
            written.
    """
    entry = dataset(name)
    if entry.hub is None:
        where = f"put {entry.files[0].path} under {data_dir}" if entry.files else "it comes with Python"
        raise DataError(f"dataset {name!r} is not on the hub: {where}")
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise DataError(disk_message(data_dir, err)) from err
    source = DataSource(data_dir)
    present = source.find(entry)
    if present is not None:
        return Fetched(source.read(entry), present, file_sha256(present), downloaded=False)
    corpus = from_hub(entry, entry.hub, source.searched(entry))
    path = data_dir / entry.files[0].path
    _write(path, encode(path, corpus.documents, table=entry.column is None))
    if documents_sha256(read_rows(path, entry.column)) != corpus.sha256:
        raise DataError(f"{path}: does not read back as it was written: check the disk")
    return Fetched(corpus, path, file_sha256(path), downloaded=True)


def verify(data_dir: Path) -> tuple[Verified, ...]:
    """Check every dataset file in the data directory.

    Raises:
        DataError: the folder does not exist.
    """
    if not data_dir.is_dir():
        raise DataError(f"data directory {data_dir} does not exist: correct --data-dir")
    return tuple(
        _verified(entry, file, data_dir / file.path)
        for entry in manifest().values()
        for file in entry.files
        if (data_dir / file.path).is_file()
    )


def _verified(entry: Dataset, file: LocalFile, path: Path) -> Verified:
    found = file_sha256(path)
    try:
        checked(entry, read_rows(path, entry.column), str(path))
    except DataError as err:
        return Verified(entry.name, path, "wrong", found, str(err))
    same = file.sha256 in (None, found)
    message = "" if same else "the right documents in other bytes than the published file"
    return Verified(entry.name, path, "unknown" if entry.sha256 is None else "ok", found, message)


def encode(path: Path, documents: tuple[str, ...], *, table: bool = False) -> bytes:
    """The documents as a file of this name: for WikiText, PTB and LAMBADA the published bytes."""
    if table:
        opening, between, end = ("[\n", ",\n", "\n]\n") if path.suffix == ".json" else ("", "\n", "\n")
        return (opening + between.join(documents) + end).encode()
    if path.suffix == ".raw":
        return "".join(" \n" if row == "" else row for row in documents).encode()
    if path.suffix == ".txt":
        return "".join(f" {row} \n" for row in documents).encode()
    lines = "".join(json.dumps({"text": row}) + "\n" for row in documents).encode()
    return gzip.compress(lines, mtime=0) if path.suffix == ".gz" else lines


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as err:
        raise DataError(disk_message(path.parent, err)) from err
    finally:
        temporary.unlink(missing_ok=True)
