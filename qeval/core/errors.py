"""Every error that qeval raises on purpose, and the exit code each one ends the program with.

    QevalError            1  something went wrong; the message is one line with the fix
    ├── UsageError        2  the command line asks for something impossible
    │   ├── SpecError     2  the YAML does; names file, line and key
    │   │   └── SpecErrors 2 in several places: a line each
    │   └── MissingExtraError 2  a package is not installed; names the command that installs it
    ├── PreflightError    1  a run would not get to its end: all that is in the way, a line each
    ├── SeveralErrors     1  what several checks of one thing found
    ├── ModelError        1  a model folder or checkpoint is missing, truncated or of no known format
    ├── DataError         1  a dataset is missing, empty, too short or not the one its sha256 names
    │   └── NotHereError  1  it would have to be downloaded first
    ├── HubError          1  the hub gave no model or file; says whether it refused
    ├── StoreError        1  a results folder cannot be read, written or locked
    ├── OutputError       1  standard output is closed or full
    ├── EnvError          1  an environment (`qeval env`) cannot be made; names the log
    ├── BuildError        1  a method cannot quantize this model (recorded per cell, the run goes on)
    ├── EngineError       1  an engine cannot load or run the artifact (recorded per cell)
    ├── NotOfferedError   1  found out in a worker: what runs the model has no such number (skipped)
    └── SandboxError      1  no sandbox on this machine, or it broke

Messages name the file, the key and the fix, in one line. A traceback is shown only with ``--debug``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence

_LONG, _MANY = 800, 50  # characters of a text of several errors, errors that are printed


class QevalError(Exception):
    """Base class; ``exit_code`` is what the command line returns. Its text is one printable line,
    whatever a file or a library put into it."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))

    @property
    def lines(self) -> list[str]:
        """The lines to print: one, or several where it stands for several errors."""
        return [str(self)]


class UsageError(QevalError):
    exit_code = 2


class SpecError(UsageError):
    pass


class SpecErrors(SpecError):
    """All that is wrong in one spec. ``told``: the lines to print, where there is more to tell. Its
    text and its lines end after the first errors where there are very many."""

    def __init__(self, errors: Sequence[QevalError], told: Sequence[str] = ()) -> None:
        text, *others = map(str, errors)
        for i, other in enumerate(others):
            if len(text) + len(other) > _LONG:
                text += f"; and {len(others) - i} more errors"
                break
            text += f"; {other}"
        super().__init__(text)
        self.errors = tuple(errors)
        self._told = list(told)

    @property
    def lines(self) -> list[str]:
        if self._told:
            return self._told
        more = len(self.errors) - _MANY
        rest = [f"- and {more} more"] if more > 0 else []
        return [f"{len(self.errors)} errors:", *(f"- {err}" for err in self.errors[:_MANY]), *rest]


class MissingExtraError(UsageError):
    def __init__(self, package: str, extra: str) -> None:
        self.fact, self.extra = f"the package {package!r} is not installed", extra
        super().__init__(f"{self.fact}: {install_command([extra])}")


class PreflightError(QevalError):
    def __init__(self, message: str) -> None:
        Exception.__init__(self, "\n".join(map(one_line, message.splitlines())))

    @property
    def lines(self) -> list[str]:
        return str(self).splitlines()


class SeveralErrors(QevalError):
    def __init__(self, errors: Sequence[QevalError]) -> None:
        super().__init__("; ".join(map(str, errors)))
        self.errors = tuple(errors)


class ModelError(QevalError):
    pass


class DataError(QevalError):
    pass


class NotHereError(DataError):
    """It would have to be downloaded first, which was not allowed: ``what``, by ``fetch``."""

    def __init__(self, what: str, fetch: Callable[[], object]) -> None:
        super().__init__(f"{what}: not here")
        self.what, self.fetch = what, fetch


class HubError(QevalError):
    """``refused``: the hub answered, and said no; else it was out of reach or too busy."""

    def __init__(self, place: object, reason: str, *, refused: bool = False) -> None:
        super().__init__(f"{place}: {reason}")
        self.reason = reason
        self.refused = refused


class StoreError(QevalError):
    pass


class OutputError(QevalError):
    pass


class EnvError(QevalError):
    pass


class BuildError(QevalError):
    pass


class EngineError(QevalError):
    pass


class NotOfferedError(QevalError):
    pass


class SandboxError(QevalError):
    pass


def raise_spec(errors: Sequence[SpecError]) -> None:
    """Raises the error that is in the list, or one SpecErrors for several."""
    found = list({str(err): err for err in errors}.values())
    if len(found) == 1:
        raise found[0]
    if found:
        raise SpecErrors(found)


def one_line(text: str) -> str:
    """A message as one printable line: its lines joined, control characters escaped."""
    joined = " ".join(line.strip() for line in text.splitlines() if line.strip())
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in joined)


def first_line(said: object) -> str:
    """The first line of a text, or of what an error says, that is not blank. An error that says nothing
    is its class."""
    lines = (line.strip() for line in str(said).splitlines())
    return next(filter(None, lines), type(said).__name__ if isinstance(said, BaseException) else "")


def with_class(err: BaseException) -> str:
    """``ImportError: cannot import name 'x'``: an error's class and first line."""
    name, line = type(err).__name__, first_line(err)
    return name if line == name else f"{name}: {line}"


def install_command(extras: Iterable[str]) -> str:
    """The command that installs the packages of these extras of qeval."""
    return f"pip install 'qeval[{','.join(sorted(set(extras)))}]'"


def raise_all(*checks: Callable[[], object]) -> None:
    """Run every check. Raises the error of one, or a SeveralErrors if several failed."""
    found: dict[str, QevalError] = {}
    for check in checks:
        try:
            check()
        except QevalError as err:
            found.setdefault(str(err), err)
    if len(found) == 1:
        raise next(iter(found.values()))
    if found:
        raise SeveralErrors(list(found.values()))


def reason(err: Exception) -> str:
    """What an exception of some library says, in one line: its first one, with those behind a colon."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()] or [type(err).__name__]
    while lines[0].endswith(":") and len(lines) > 1:
        lines[:2] = [f"{lines[0]} {lines[1]}"]
    return one_line(lines[0])


def short(text: str, limit: int = 100) -> str:
    """A user's text, shortened for a message."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``'; did you mean X?'`` for the closest known word, else the known words, as a clause."""
    choices = sorted(set(known))
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(choices)}" if choices else ""
