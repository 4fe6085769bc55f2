"""Writing files whole or not at all, reading them with limits, and the errors of disks in one line."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import stat
from pathlib import Path
from typing import Any, BinaryIO

from qeval.core.errors import QevalError, StoreError, UsageError, short
from qeval.core.units import human_bytes

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFLNK: "a link that leads nowhere",
}
NAME_CHARS = 50  # of the target's name in that of its temporary file: a name has at most 255 bytes


def write_atomic(path: Path, text: str | bytes) -> None:
    """Write beside the target, sync, rename: a reader sees the old file or the new one.

    Only a regular file is ever replaced (``regular_target``). It keeps its permissions; a new one has
    those of the umask.

    Raises:
        StoreError: the target is something else, or the folder cannot be written; with the fix.
    """
    target = regular_target(path)
    data = text if isinstance(text, bytes) else text.encode()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name[:NAME_CHARS]}.{secrets.token_hex(8)}")
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
        try:
            with os.fdopen(handle, "wb") as file:
                if target.exists():
                    os.fchmod(handle, stat.S_IMODE(target.stat().st_mode))
                file.write(data)
                file.flush()
                os.fsync(handle)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as err:
        raise StoreError(disk_message(path.parent, err)) from err


def regular_target(path: Path) -> Path:
    """The regular file that writing to ``path`` is about, there or not yet; links are followed, so
    that they stay.

    Raises:
        StoreError: a device, a pipe, a socket, a folder or a link in a circle, which a rename would
            replace by a file; or a path that cannot be looked at.
    """
    target = Path(os.path.realpath(path))
    try:
        mode = target.lstat().st_mode
        if stat.S_ISREG(mode):
            return target
    except (FileNotFoundError, NotADirectoryError):
        if not exists(path):
            return target
        mode = path.stat().st_mode  # a link of /proc to what has no name, as /dev/stdout may be
    except OSError as err:
        raise StoreError(disk_message(path.parent, err)) from err
    raise StoreError(not_regular(path, mode))


def not_regular(path: Path, mode: int) -> str:
    """One line for a path that should be a regular file; ``mode`` is its ``st_mode``."""
    kind = KINDS.get(stat.S_IFMT(mode), "no regular file")
    return f"{path}: is {kind}: name a regular file"


def user_path(path: Path | str) -> Path:
    """A path as the user wrote it, with ``~`` expanded.

    Raises:
        UsageError: the user after ``~`` does not exist, or this one has no home directory.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as err:
        raise UsageError(
            f"{short(str(path))}: no such user, or no home directory (set HOME): write the path out"
        ) from err


def real_path(path: Path | str) -> Path:
    """``user_path``, absolute and with links followed."""
    return Path(os.path.realpath(user_path(path)))


def exists(path: Path) -> bool:
    """Path.exists, which raises for a name that is too long or holds a NUL."""
    return os.path.exists(path)  # noqa: PTH110


def file_sha256(path: Path) -> str:
    """Of the content, in hex. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


STREAMS = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")


def open_regular(path: Path, error: type[QevalError], *, streams: bool = False) -> BinaryIO:
    """A regular file, open for reading: a device may have no end, and at a pipe even opening may wait.
    ``streams``: what the shell hands over (``/dev/stdin``, ``<(command)``) is taken, too.

    Raises:
        error: it is not there, something else, or cannot be opened.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not (streams and str(path).startswith(STREAMS)):
            raise error(not_regular(path, mode))
        return path.open("rb")
    except FileNotFoundError as err:
        raise error(f"{path}: no such file") from err
    except (OSError, ValueError) as err:  # ValueError: a NUL in the name
        reason = err.strerror if isinstance(err, OSError) else str(err)
        raise error(f"{short(str(path))}: cannot be read ({reason})") from err


def read_bytes(path: Path, limit: int, error: type[QevalError], *, streams: bool = False) -> bytes:
    """The content of a file of at most ``limit`` bytes.

    Raises:
        error: as ``open_regular``; or the file is longer.
    """
    with open_regular(path, error, streams=streams) as file:
        try:
            data = file.read(limit + 1)
        except OSError as err:
            raise error(f"{path}: cannot be read ({err.strerror})") from err
    if len(data) > limit:
        raise error(f"{path}: over {human_bytes(limit)}, the most that is read of such a file")
    return data


def parse_json(data: str | bytes, where: str, error: type[QevalError], fix: str = "") -> Any:
    """The JSON value of ``data``; ``where`` names it.

    Raises:
        error: not JSON, nested too deeply, or a number of too many digits; with the fix.
    """
    try:
        return json.loads(data)
    except json.JSONDecodeError as err:
        line = f"line {err.lineno}, " if err.lineno > 1 else ""
        reason = f"{err.msg} at {line}column {err.colno}"
    except UnicodeDecodeError as err:
        reason = f"not UTF-8: {err.reason}"
    except ValueError:  # sys.set_int_max_str_digits
        reason = "a number of more than 4,300 digits"
    except RecursionError:
        reason = "nested too deeply"
    raise error(f"{where}: not JSON ({reason}){fix}")


def disk_message(folder: Path, err: OSError) -> str:
    """One line for an OSError on a folder: what happened and what to do."""
    fixes = {
        errno.ENOSPC: "no space left on the device: free some (`qeval cache list`) and run again",
        errno.EDQUOT: "disk quota exceeded: free some space and run again",
        errno.EROFS: "the file system is read-only: choose another folder",
        errno.EACCES: "permission denied: choose a folder you may write",
        errno.ENOTDIR: "a part of this path is a file: choose another folder",
        errno.EEXIST: "is a file: choose another folder",
        errno.ENOENT: "cannot be made there: choose another folder",
        errno.ENAMETOOLONG: "File name too long: choose a shorter one",
        errno.ELOOP: "links that lead in a circle: choose another folder",
    }
    return f"{short(str(folder), 300)}: {fixes.get(err.errno or 0, err.strerror or str(err))}"
