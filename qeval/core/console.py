"""Standard output and error where they are closed, full, or no longer read.

What was asked for (a table) and cannot be printed is an error. A reader that went away is none, and
what says how far a run is (``say``) never ends it.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Container, Iterator, Sequence
from typing import TextIO

from qeval.core.errors import OutputError, one_line


def open_missing() -> None:
    """Give the descriptors 0, 1 and 2 something to refer to where the caller closed them (``>&-``):
    the next file that is opened would take the number, and be written into."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_WRONLY if number == 2 else os.O_RDONLY)
    if sys.stdout is None:  # it was closed: writing to it fails, and is said
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without Unicode


def echo(text: str, end: str = "\n") -> None:
    """Print to standard output.

    Raises:
        OutputError: it is closed or full. Not where a reader went away (``| head``): the rest of what
            is printed then vanishes.
    """
    try:
        sys.stdout.write(text + end)
        sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout)
    except OSError as err:
        silence(sys.stdout)
        reason = "it is closed" if err.errno == errno.EBADF else err.strerror
        raise OutputError(f"standard output cannot be written ({reason})") from err


def say(line: str) -> None:
    """A line on standard error, if anybody reads it."""
    tell(f"qeval: {one_line(line)}")


def columns(rows: Sequence[Sequence[str]]) -> str:
    """A line a row, in left-aligned columns, the last one free; an empty row is an empty line."""
    return "\n".join(aligned(rows))


def aligned(rows: Sequence[Sequence[str]], right: Container[int] = ()) -> list[str]:
    """The same as lines; ``right``: which columns are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*filter(None, rows), strict=True)]
    return ["  ".join(_padded(row, widths, right)).rstrip() for row in rows]


def _padded(row: Sequence[str], widths: Sequence[int], right: Container[int]) -> Iterator[str]:
    for i, (cell, width) in enumerate(zip(row, widths, strict=False)):
        yield cell.rjust(width) if i in right else cell.ljust(width)


def tell(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        silence(sys.stderr)


def silence(stream: TextIO) -> None:
    """Let what is written to it from now on, and what waits in its buffer, vanish."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, stream.fileno())
    os.close(nothing)


def warn(warnings: Sequence[str]) -> None:
    for line in warnings:
        say(f"warning: {line}")
