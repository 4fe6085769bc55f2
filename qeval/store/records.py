"""The results folder: ``records.jsonl``, append-only, one JSON line a job; written by one process.

A line is written whole and synced before ``append`` returns, so that a killed run loses at most the job
it was in. A line that a kill or a full disk tore is skipped with a warning and never read as something
else; the next append starts on a new line. ``lock`` keeps a second run out of the folder.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from qeval.core.errors import StoreError
from qeval.core.files import disk_message
from qeval.core.record import SCHEMA_VERSION, Record


class Store:
    """One results folder. ``warnings`` collects what ``read`` had to leave out, one line each."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.path = self.folder / "records.jsonl"
        self.warnings: list[str] = []

    def read(self) -> list[Record]:
        """All records in the order they were written; none where nothing was written yet.

        Raises:
            StoreError: the file cannot be read, or holds a record of a newer qeval.
        """
        return [record for _, record in self.numbered()]

    def numbered(self) -> list[tuple[int, Record]]:
        """The same, with the place of its line among ``raw_lines``."""
        self.warnings.clear()
        lines = self.raw_lines()
        found = ((i, self._line(i + 1, line, torn=i + 1 == len(lines))) for i, line in enumerate(lines))
        return [(i, record) for i, record in found if record is not None]

    def raw_lines(self) -> list[bytes]:
        """The lines of the file without what ends them, whatever is in them; after the last end of line
        comes one more, empty where nothing was torn.

        Raises:
            StoreError: the file cannot be read.
        """
        try:
            return self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as err:
            raise StoreError(f"cannot read {self.path}: {os.strerror(err.errno or 0)}") from err

    def latest(self) -> dict[str, Record]:
        return latest(self.read())

    def append(self, record: Record) -> None:
        """Write one record and wait until it is on the disk.

        Raises:
            StoreError: no space, no permission, ...; the records before it are untouched.
        """
        line = json.dumps(record.to_json(), allow_nan=False, separators=(",", ":")).encode() + b"\n"
        self._create()
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                _append(fd, line)
            finally:
                os.close(fd)
        except OSError as err:
            self._fail("write to", err)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process; the kernel lets go of it when the process ends.

        Raises:
            StoreError: another process holds it, or the folder cannot be written.
        """
        self._create()
        try:
            fd = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as err:
            self._fail("lock", err)
        try:
            self._take(fd)
            yield
        finally:
            os.close(fd)

    def in_use(self) -> bool:
        """Whether another process holds the lock now."""
        import fcntl

        try:
            with (self.folder / "lock").open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False  # it was never locked, or may only be read
        return False

    def _take(self, fd: int) -> None:
        import fcntl  # not on every system; reading needs no lock

        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.write(fd, f"pid {os.getpid()} on host {socket.gethostname()}".encode())
        except BlockingIOError as err:
            holder = os.pread(fd, 300, 0).decode(errors="replace") or "pid unknown"
            raise StoreError(
                f"another qeval run ({holder}) is using {self.folder}: "
                "wait for it or use another folder"
            ) from err
        except OSError as err:
            self._fail("lock", err)

    def _create(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            self._fail("create", err)

    def _fail(self, action: str, err: OSError) -> NoReturn:
        message = f"cannot {action} the results folder {disk_message(self.folder, err)}"
        raise StoreError(message) from err

    def _line(self, number: int, line: bytes, *, torn: bool) -> Record | None:
        """The record of a line, or None with a warning. ``torn``: nothing ends this line."""
        if not line.strip():
            return None
        try:
            data = json.loads(line, parse_constant=_not_json)
            newer = isinstance(data, dict) and _version(data) > SCHEMA_VERSION
        except (ValueError, RecursionError):
            what = "was cut off while it was written" if torn else "is not a JSON record"
            self.warnings.append(f"{self.path}: line {number} {what}: ignored")
            return None
        try:
            return _record(data, str(self.folder))
        except StoreError as err:
            if newer:
                raise StoreError(f"{self.path}: line {number} {err}") from err
            self.warnings.append(f"{self.path}: line {number} is {err}: ignored")
            return None


def latest(records: Iterable[Record]) -> dict[str, Record]:
    """One record a key, in the order the keys first came: the last ``ok`` one, else the last."""
    found: dict[str, Record] = {}
    for record in records:
        before = found.get(record.key)
        if before is None or record.status == "ok" or before.status != "ok":
            found[record.key] = record
    return found


def read_many(folders: Sequence[Path | str]) -> tuple[list[Record], list[str]]:
    """The records of several results folders, one after the other, and the warnings.

    Raises:
        StoreError: a folder is missing or holds no record; or as ``Store.read``.
    """
    records: list[Record] = []
    warnings: list[str] = []
    for folder in folders:
        store = Store(folder)
        if not store.folder.is_dir():
            what = "is a file" if store.folder.exists() else "does not exist"
            raise StoreError(f"results folder {folder} {what}: name the folder of a `qeval run`")
        found = store.read()
        if not found:
            hint = f" ({store.warnings[0]})" if store.warnings else ""
            raise StoreError(f"no records in {store.path}{hint}: fill it with `qeval run`")
        records += found
        warnings += store.warnings
    return records, warnings


def _append(fd: int, line: bytes) -> None:
    """Append to the open file; on an error, cut off what was written of the line.

    Not ``jsonl.append_line``: that is for a line every few milliseconds, which cannot wait for the
    disk, in files whose one writer cuts a torn line off before it begins.
    """
    size = os.fstat(fd).st_size
    torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
    rest = b"\n" + line if torn else line
    try:
        while rest:  # a disk that fills up takes a part first
            rest = rest[os.write(fd, rest) :]
        os.fsync(fd)
    except OSError:
        os.ftruncate(fd, size)
        raise


def _record(data: object, folder: str) -> Record:
    if not isinstance(data, dict):
        raise StoreError("not a qeval record (not an object)")
    record = Record.from_json(data, folder)
    if not isinstance(record.cell, dict) or not isinstance(record.key, str):
        raise StoreError("not a qeval record (cell or key of a wrong type)")
    return record


def _version(data: dict[str, object]) -> int:
    version = data.get("schema_version")
    return version if isinstance(version, int) else 0


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
