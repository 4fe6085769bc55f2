"""Verdicts as they are kept: one JSON line per sample, from which an interrupted scoring continues.

A line names its program by a key, the sha256 of all that decides its verdict. So a line is used again
only for the very same program, run in the same way; all other lines are ignored.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from qeval.core.errors import DataError, StoreError
from qeval.core.files import disk_message, open_regular, regular_target, write_atomic
from qeval.core.jsonl import append_line, parsed
from qeval.sandbox import Limits, Program, Verdict
from qeval.sandbox.base import Status
from qeval.tasks.coding.samples import Sample

# Raise it when the same program may get another verdict. 2: tests draw by the program, not from 0.
SCORER_VERSION = 2
OPENING = b'{"task_id": '  # of every line
MAX_LINE = 1 << 20  # bytes; a task_id and a detail are short


@dataclass(frozen=True, slots=True)
class Graded:
    """A sample and what became of its program; ``verdict.id`` is the program's key."""

    sample: Sample
    verdict: Verdict

    def to_json(self) -> dict[str, object]:
        return {
            "task_id": self.sample.task_id,
            "sample": self.sample.sample,
            "status": self.verdict.status,
            "verdict": self.verdict.text,
            "detail": self.verdict.detail,
            "passed": self.verdict.passed,
            "seconds": self.verdict.seconds,
            "sandbox": self.verdict.sandbox,
            "program": self.verdict.id,
        }

    def line(self) -> str:
        return json.dumps(self.to_json()) + "\n"


def program_key(program: Program, limits: Limits, rules: Sequence[object]) -> str:
    """sha256 of all that decides the verdict: the program's own texts, the limits, this Python, and
    ``rules``: plain values that say how it is run beyond that."""
    numbers = {name: float(value) for name, value in asdict(limits).items()}  # 3 s are 3.0 s
    parts = {**vars(program), "id": "", "limits": numbers, "rules": rules}
    parts |= {"scorer": SCORER_VERSION, "python": platform.python_version()}
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class VerdictFile:
    """``*.verdicts.jsonl``: a line per program as it is judged, at the end one per sample, in order.

    What a killed scoring left is in ``saved``, by program; a torn last line is cut off.
    """

    def __init__(self, path: Path) -> None:
        """Raises StoreError when the folder cannot be written or the path is not a regular file,
        DataError for a file of other things."""
        self._path = path = regular_target(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(path.parent, os.W_OK):  # finish() puts another file in its place
                raise OSError(errno.EACCES, "permission denied")
            self.saved = _read(path) if path.exists() else {}
            self._file = path.open("ab", buffering=0)  # nothing is left to write when it closes
        except OSError as err:
            raise StoreError(disk_message(path.parent, err)) from err

    def add(self, graded: Graded) -> None:
        append_line(self._file, graded.line(), self._path)

    def finish(self, graded: Sequence[Graded]) -> None:
        """Leave exactly these lines."""
        self.close()
        write_atomic(self._path, "".join(one.line() for one in graded))

    def close(self) -> None:
        self._file.close()


def _read(path: Path) -> dict[str, Verdict]:
    """The verdicts of the whole lines, by program. What follows the last of them is cut off."""
    saved, whole, number = {}, 0, 0
    with open_regular(path, DataError) as file:
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE or not line.startswith(OPENING[: len(line)]):
                raise _foreign(path, number)
            if line.endswith(b"\n"):  # the last one may be torn anywhere
                whole += len(line)
                if (verdict := _verdict(line, path, number)) is not None:
                    saved[verdict.id] = verdict
    if whole < path.stat().st_size:
        os.truncate(path, whole)
    return saved


def _verdict(line: bytes, path: Path, number: int) -> Verdict | None:
    """None for a line of a qeval that named no program."""
    try:
        data = parsed(line, "")
        status, detail, sandbox = data["status"], data["detail"], data["sandbox"]
        key, seconds = data.get("program"), float(data["seconds"])
    except (DataError, KeyError, TypeError, ValueError, OverflowError, AttributeError) as err:
        raise _foreign(path, number) from err
    texts = isinstance(detail, str) and isinstance(sandbox, str) and isinstance(key, str | None)
    if not texts or status not in get_args(Status) or not math.isfinite(seconds):
        raise _foreign(path, number)
    return None if key is None else Verdict(key, status, detail, seconds, sandbox)


def _foreign(path: Path, number: int) -> DataError:
    return DataError(f"{path}:{number}: not a verdict of qeval; move the file away or name another one")
