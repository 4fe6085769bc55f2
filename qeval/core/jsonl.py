"""Files of one JSON value a line, compressed or not, from any source. They are read with limits, so
that none takes all memory or all time; every fault is named by file and line."""

from __future__ import annotations

import errno
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import IO, Any, TextIO, cast

from qeval.core.errors import DataError, StoreError
from qeval.core.files import disk_message, open_regular, parse_json
from qeval.core.units import human_bytes

MAX_LINE = 1 << 25  # characters; their JSON may take twenty times as many bytes of memory
MAX_UNPACKED = 1 << 30  # bytes; a packed file of some MB can hold any number
MAX_BLANK = 1_000_000  # empty lines
GZIP = b"\x1f\x8b"


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1.

    Raises:
        DataError: no regular file, unreadable, damaged, no text, or over a limit; names file and line.
    """
    blank = 0
    with _opened(path) as text:
        for number in count(1):
            line = _line(text, path)
            if not line:
                return
            if len(line) > MAX_LINE:
                raise DataError(f"{path}:{number}: a line of over {MAX_LINE:,} characters; remove it")
            if line.strip():
                yield number, line
            elif (blank := blank + 1) > MAX_BLANK:
                raise DataError(f"{path}:{number}: over {MAX_BLANK:,} empty lines; remove them")


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    with ExitStack() as stack:
        file: IO[bytes] = stack.enter_context(open_regular(path, DataError))
        packed = file.read(len(GZIP)) == GZIP
        file.seek(0)
        if packed:
            file = stack.enter_context(cast(IO[bytes], gzip.GzipFile(fileobj=file)))
        yield stack.enter_context(io.TextIOWrapper(file, encoding="utf-8-sig"))


def _line(text: TextIO, path: Path) -> str:
    """The next line, or the beginning of one that is too long; empty at the end."""
    try:
        line = text.readline(MAX_LINE + 1)
        if isinstance(text.buffer, gzip.GzipFile) and text.buffer.tell() > MAX_UNPACKED:
            most = human_bytes(MAX_UNPACKED)
            raise DataError(f"{path}: unpacks to over {most}; if that is right, gunzip it first")
    except (OSError, EOFError, zlib.error) as err:
        raise DataError(f"{path}: cannot be read ({err}); give a whole .jsonl file") from err
    except UnicodeDecodeError as err:
        raise DataError(f"{path}: not UTF-8 text ({err}); give a .jsonl file") from err
    return line


def append_line(file: IO[bytes], line: str, path: Path) -> None:
    """Write a line to the end of ``path``, which ``file`` has open without a buffer.

    Raises:
        StoreError: it was not written whole.
    """
    try:
        data = line.encode()
        if file.write(data) != len(data):
            raise OSError(errno.ENOSPC, "written in part")
    except OSError as err:
        raise StoreError(disk_message(path.parent, err)) from err


def cut_torn_line(path: Path) -> None:
    """Cut off a last line that a kill left without its end. Raises OSError."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)


def parsed(text: str | bytes, where: str) -> Any:
    """The value of a line; ``where`` names it.

    Raises:
        DataError: not JSON, or nested too deeply, or a number of too many digits.
    """
    return parse_json(text, where, DataError, "; mend or remove it")
