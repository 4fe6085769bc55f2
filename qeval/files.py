"""Writing files whole or not at all, and the errors of full and read-only disks in one line."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from qeval.errors import StoreError


def write_atomic(path: Path, text: str) -> None:
    """Write beside the target, sync, rename: a reader sees the old file or the new one.

    Raises:
        StoreError: the folder cannot be written, with the reason and the fix.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as err:
        raise StoreError(disk_message(path.parent, err)) from err


def disk_message(folder: Path, err: OSError) -> str:
    """One line for an OSError on a folder: what happened and what to do."""
    fixes = {
        errno.ENOSPC: "no space left on the device: free some (`qeval cache list`) and run again",
        errno.EDQUOT: "disk quota exceeded: free some space and run again",
        errno.EROFS: "the file system is read-only: choose another folder",
        errno.EACCES: "permission denied: choose a folder you may write",
        errno.ENOTDIR: "a part of this path is a file: choose another folder",
    }
    return f"{folder}: {fixes.get(err.errno or 0, err.strerror or str(err))}"
