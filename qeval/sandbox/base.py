"""The types of the sandbox: what goes in (Program, Limits) and what comes out (Verdict)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

MIB = 1 << 20

Status = Literal["passed", "failed", "syntax", "timeout", "memory", "output", "killed"]


@dataclass(frozen=True)
class Program:
    """One program to judge: the code under test, and the tests that decide about it.

    ``code`` is hostile: it runs in a process of its own, which never sees the tests. ``setup``,
    ``test`` and ``call`` are trusted: they run, in this order and in one module, in another process,
    where every one of ``names`` is a function that calls the code's function of that name, with plain
    values both ways (docs/sandbox.md says which). The program passes if and only if ``call`` returns.

    Only the standard library can be imported, on either side.
    """

    id: str
    code: str
    test: str
    call: str = ""
    setup: str = ""  # definitions that the tests use beside ``names``
    names: tuple[str, ...] = ()  # what the tests use of the code
    timeout_s: float | None = None  # None: the limits'


@dataclass(frozen=True)
class Limits:
    """What one program may use; its own start-up is not counted in ``timeout_s``.

    Time is the program's own: wall time less the time that it waited for a free core, so that a busy
    machine turns no pass into a timeout.
    """

    timeout_s: float = 3.0
    memory_bytes: int = 4096 * MIB  # address space
    scratch_bytes: int = 64 * MIB  # all its files together, and the largest of them
    scratch_files: int = 4096
    open_files: int = 256
    threads: int = 256
    reply_bytes: int = 16 * MIB  # one value that it returns


@dataclass(frozen=True)
class Verdict:
    """What became of a program.

    ``passed``: the last statement of its tests returned. ``syntax``: it does not compile. ``failed``:
    an exception, or an end before the tests were over (``sys.exit``, ``os._exit``). ``timeout``,
    ``memory``: over the limit. ``output``: it returned more than the tests take. ``killed``: it died
    of a signal.
    """

    id: str
    status: Status
    detail: str  # "AssertionError: ...", "signal 11", "3 s"; empty when passed
    seconds: float  # CPU time of its process and of its tests
    sandbox: str  # name of the sandbox it ran in

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    @property
    def text(self) -> str:
        """``passed``, ``timeout``, ...; a failure with its exception: ``failed: ValueError``."""
        if self.status != "failed":
            return self.status
        return f"failed: {self.detail.partition(':')[0]}"


class Verdicts(Iterator[Verdict], Protocol):
    """The verdicts of one run, as they come."""

    def close(self) -> None:
        """Kill what still runs, from any thread. A thread that waits for the next verdict sees the
        end."""
        ...


class Sandbox(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def layers(self) -> tuple[str, ...]:
        """The walls that stand, each of them tried, for the record."""
        ...

    def run(self, programs: Iterable[Program], limits: Limits, workers: int) -> Verdicts:
        """One verdict per program as they finish, in any order, ``workers`` at a time. Programs are
        taken only as fast as they are run, in threads of the sandbox: the iterable may block.

        Raises:
            SandboxError: the sandbox itself broke (never the fault of a program).
        """
        ...
