"""What is in the way of a run, found before its first job: `run`, ``--dry-run`` and `stats` ask alike.

Every check is asked here and what it finds returned as Problems, never raised, so that all of them are
told at once. What has to be downloaded first is no problem but a Download: a dry run lists it, a run
fetches it and asks again.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qeval.core.console import say
from qeval.core.errors import (
    MissingExtraError,
    NotHereError,
    PreflightError,
    QevalError,
    SeveralErrors,
    SpecError,
    SpecErrors,
    install_command,
)
from qeval.core.units import human_bytes
from qeval.engines.base import ENGINES, Packed, environment_of
from qeval.formats.base import FORMATS
from qeval.plan.cells import device_of_engine
from qeval.quant.base import METHODS, Method
from qeval.tasks.base import TASKS, preflight_model

if TYPE_CHECKING:
    from qeval.core.artifact import Artifact, ModelRef
    from qeval.core.execution import Execution
    from qeval.core.options import Options
    from qeval.data.datasets import DataSource
    from qeval.plan.cells import Row
    from qeval.plan.room import Room
    from qeval.plan.spec import EngineChoice, Quantization, TaskEntry

_WHERES = 3  # places of one problem that are named


@dataclass(frozen=True)
class Problem:
    """``where``: what it is about, in the spec's words: a row, a task, ``device``. ``message``: what is
    wrong and the fix. ``extra``: the one of qeval that has a missing package."""

    where: str
    message: str
    extra: str = ""
    error: QevalError | None = field(default=None, compare=False, repr=False)  # for its traceback


@dataclass(frozen=True)
class Download:
    """What is not here and has to be fetched first."""

    what: str  # with files and bytes, where the hub tells them
    fetch: Callable[[], object] = field(compare=False, repr=False)


@dataclass(frozen=True)
class Findings:
    """What one check, or several, came to."""

    problems: tuple[Problem, ...] = ()
    downloads: tuple[Download, ...] = ()

    @staticmethod
    def union(parts: Iterable[Findings]) -> Findings:
        """All of them, what several found once, in the order in which it was found."""
        kept = list(parts)
        return Findings(
            tuple(dict.fromkeys(p for part in kept for p in part.problems)),
            tuple(dict.fromkeys(d for part in kept for d in part.downloads)),
        )


def ask(where: str, *checks: Callable[[], object]) -> Findings:
    """What checks find that raise a QevalError for what is wrong."""
    found: list[Problem] = []
    downloads: list[Download] = []
    for check in checks:
        try:
            check()
        except QevalError as err:
            for each in err.errors if isinstance(err, SeveralErrors) else (err,):
                if isinstance(each, NotHereError):
                    downloads.append(Download(each.what, each.fetch))
                else:
                    found += problems_of(where, each)
    return Findings(tuple(dict.fromkeys(found)), tuple(dict.fromkeys(downloads)))


def problems_of(where: str, err: QevalError) -> Iterator[Problem]:
    if isinstance(err, SeveralErrors):
        for each in err.errors:
            yield from problems_of(where, each)
    elif isinstance(err, MissingExtraError):
        yield Problem(where, err.fact, err.extra, err)
    else:
        message = str(err)
        yield Problem("" if message.startswith(where) else where, message, error=err)


# The checks


def engine(name: str, cache_dir: Path) -> Findings:
    """The packages of an engine, and the environment that it runs in."""
    checks = (ENGINES[name].preflight, lambda: engine_interpreter(name, cache_dir))
    return ask(f"engine {name}", *checks)


def device(name: str, asked: str) -> Findings:
    """Whether there is the device that an engine is asked to use."""
    return ask(f"engine {name}", lambda: device_of_engine(ENGINES[name], asked))


def method(quantization: Quantization, cache_dir: Path) -> Findings:
    """What a method needs of this machine: packages, and the environment that it builds in."""
    found, options = METHODS[quantization.method](), quantization.options
    return ask(
        quantization.label,
        lambda: found.check_packages(options),
        lambda: interpreter(found, options, cache_dir),
    )


def interpreter(method: Method[Options], options: Options, cache_dir: Path) -> Path | None:
    """The interpreter that a build runs in, where it is not this one.

    Raises:
        UsageError: the environment is not there; the message has the command that makes it.
    """
    name = method.environment(options)
    if not name:
        return None
    from qeval.envs.build import python_of

    return python_of(name, cache_dir)


def engine_interpreter(name: str, cache_dir: Path) -> Path | None:
    """The interpreter that an engine runs in, where it is not this one.

    Raises:
        UsageError: the environment is not there; the message has the command that makes it.
    """
    environment = environment_of(name)
    if environment is None:
        return None
    from qeval.envs.build import python_of

    return python_of(environment, cache_dir)


def row(row: Row, device: str | None) -> Findings:
    """Whether a model is one that its method takes, or, where the weights are there, whether they run.
    ``device``: ``cpu`` or ``cuda``; None: not known."""
    from qeval.formats.recognise import check_float

    name, options, model = row.quantization.method, row.quantization.options, row.model
    chosen = row.quantization.engine
    foreign = chosen is not None and chosen.is_foreign
    own = [lambda: _check_options(chosen, model, device)] if chosen is not None else []
    if row.artifact is not None:
        if foreign:
            made = row.artifact.format
            packed = Packed(made.name, made.num_bits, made.symmetric) if made else None
            return ask(row.name, lambda: ENGINES[row.engine].check(packed, model, device), *own)
        return artifact(row.name, row.artifact, model, row.quantization.execution, device)
    found = METHODS[name]()
    already = ask(row.name, lambda: check_float(name, model))
    if already.problems:
        return already
    fits = [lambda: found.check_device(options, model, device)] if device else []
    if foreign and not found.simulates(options):
        written = _to_be_packed(name, options)
        fits.append(lambda: ENGINES[row.engine].check(written, model, device))
    answer = ask(row.name, lambda: found.preflight(options, model), *fits, *own)
    label = row.quantization.label  # packages are the method's business, whatever the model
    problems = (replace(p, where=label) if p.extra else p for p in answer.problems)
    return replace(answer, problems=tuple(problems))


def _check_options(chosen: EngineChoice, model: ModelRef, device: str | None) -> None:
    check = getattr(ENGINES[chosen.name], "check_options", None)  # engines of others may have none
    if check is not None:
        check(chosen.given, model, device)


def _to_be_packed(method: str, options: Options) -> Packed | None:
    """The format that a build will write, by the method's options; None where these do not say."""
    named = (str(getattr(options, "format", "")), method)  # `format: gptq` of the laboratory's methods
    name = next((n for n in named if n in FORMATS), None)
    if name is None:
        return None
    bits = getattr(options, "num_bits", None)
    if scheme := re.match(r"W(\d+)", str(getattr(options, "scheme", ""))):  # compressed-tensors' W4A16
        bits = int(scheme[1])
    return Packed(name, bits, getattr(options, "symmetric", None))


def artifact(
    where: str, made: Artifact, model: ModelRef, execution: Execution, device: str | None
) -> Findings:
    """What weights that are there need to run: packages, a dtype, a kernel that the device has."""
    from qeval.formats.limits import check_kernel
    from qeval.formats.recognise import check_device, check_runs

    kernel, label = execution.kernel or "auto", made.format.label if made.format else ""

    def check_place() -> None:
        if device is not None:
            check_kernel(label, kernel, device)
            check_device(made, device)

    found = ask(where, lambda: check_runs(made, model), check_place)
    asks = getattr(ENGINES[made.engine], "reach", None)  # engines of others may have none
    if found.problems or asks is None or ask("", ENGINES[made.engine].preflight).problems:
        return found
    return ask(where, lambda: asks(made))


def vocabulary(where: str, path: Path) -> Findings:
    """Whether the installed llama.cpp reads the vocabulary of a ``.gguf`` file."""
    from qeval.llama.vocabulary import check_vocabulary

    return ask(where, lambda: check_vocabulary(path))


def task(entry: TaskEntry, data: DataSource, *, weak_sandbox: bool) -> Findings:
    """What a task needs beside the model: its text or problems, a sandbox."""
    found = TASKS[entry.task]()
    return ask(entry.label, lambda: found.preflight(entry.options, data, weak_sandbox=weak_sandbox))


def build(quantization: Quantization, model: ModelRef, data: DataSource, cache_dir: Path) -> Findings:
    """What a build of this model will find in its calibration text and in its tools."""
    from qeval.data.calibration import check_length

    found, options = METHODS[quantization.method](), quantization.options
    chosen = found.reads(options)
    checks: list[Callable[[], object]] = [lambda: found.check_tools(options, model, cache_dir)]
    if chosen is not None:
        checks.append(lambda: check_length(data, chosen, model))
    return ask(f"{model.id} · {quantization.label}", *checks)


def task_on_model(entry: TaskEntry, model: ModelRef, data: DataSource) -> Findings:
    """Whether a model has what a task asks of it."""
    found = TASKS[entry.task]()
    where = f"{model.id} · {entry.label}"
    return ask(where, lambda: preflight_model(found, entry.options, model, data))


def space(room: Room, cache_dir: Path) -> Findings:
    """Whether the cache takes what will be built and kept."""
    folder = next(p for p in (cache_dir, *cache_dir.parents) if p.exists())
    if not folder.is_dir():
        return Findings((Problem("cache", f"{folder} is a file: choose another --cache-dir"),))
    if room.what and not os.access(folder, os.W_OK | os.X_OK):
        return Findings(
            (Problem("cache", f"{folder}: no permission to write: choose another --cache-dir"),)
        )
    free = shutil.disk_usage(folder).free
    if room.n_bytes <= free:
        return Findings()
    limit = ", set a lower `limit` for divergence" if room.predictions else ""
    return Findings(
        (
            Problem(
                "cache",
                f"{room.what} will take {human_bytes(room.n_bytes)} at the least, and {folder} has "
                f"{human_bytes(free)} free: free some (`qeval cache list`){limit}, or choose another "
                "--cache-dir",
            ),
        )
    )


def fetch(downloads: Sequence[Download]) -> None:
    """Download everything. Raises PreflightError for what cannot be had."""
    found = [ask("", partial(_fetch, download)) for download in downloads]
    refuse(Findings.union(found).problems)


def _fetch(download: Download) -> None:
    say(f"downloading {download.what}")
    download.fetch()


# Telling


def refuse(problems: Sequence[Problem]) -> None:
    """Raises PreflightError where there are any."""
    if problems:
        raise PreflightError("\n".join(report(problems))) from problems[0].error


def refuse_spec(errors: Sequence[SpecError], problems: Sequence[Problem]) -> None:
    """Raises SpecErrors for the errors of a spec; it also tells what is in the way of the rest."""
    if errors:
        told = report([*(Problem("", str(err)) for err in errors), *problems])
        raise SpecErrors(errors, told) from errors[0]


def report(problems: Sequence[Problem]) -> list[str]:
    """One line for one problem; for several a line each, with one command for all missing packages."""
    lines, extras = list(_lines(problems)), sorted({p.extra for p in problems if p.extra})
    install = install_command(extras) if extras else ""
    if len(lines) == 1:
        return [lines[0] + (f": {install}" if install else "")]
    last = [f"- install what is missing: {install}"] if install else []
    head = f"{len(lines)} problems, nothing was started:"
    return [head, *(f"- {line}" for line in lines), *last]


def _lines(problems: Sequence[Problem]) -> Iterator[str]:
    """The problems, with all places of one that several have."""
    places: dict[str, list[str]] = {}
    for problem in problems:
        places.setdefault(problem.message, []).append(problem.where)
    for message, found in places.items():
        wheres = [where for where in dict.fromkeys(found) if where]
        more = f" and {len(wheres) - _WHERES} more" if len(wheres) > _WHERES else ""
        where = ", ".join(wheres[:_WHERES]) + more
        yield f"{where}: {message}" if where else message
