"""The types of the sandbox: what goes in (Program, Limits) and what comes out (Verdict)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

MIB = 1 << 20

Status = Literal["passed", "failed", "syntax", "timeout", "memory", "output", "killed"]


@dataclass(frozen=True)
class Program:
    """One program to judge: the code under test, the definitions that test it, and the call.

    ``code`` and ``test`` are compiled as one text with a newline between them; then ``call`` (any
    statements) is executed in the same module. The program passes if and only if ``call`` is reached
    and returns. Only the standard library can be imported; ``__name__`` is ``"program"``.
    """

    id: str
    code: str
    test: str
    call: str


@dataclass(frozen=True)
class Limits:
    """What one program may use; its own start-up is not counted in ``timeout_s``."""

    timeout_s: float = 3.0  # wall time; the CPU time limit is the next whole second
    memory_bytes: int = 4096 * MIB  # address space
    scratch_bytes: int = 64 * MIB  # all its files together, and the largest of them
    open_files: int = 256
    threads: int = 256


@dataclass(frozen=True)
class Verdict:
    """What became of a program.

    ``passed``: the call returned. ``syntax``: it does not compile. ``failed``: an exception, or an end
    before the call returned (``sys.exit``, ``os._exit``). ``timeout``, ``memory``: over the limit.
    ``output``: it flooded the channel of the verdict. ``killed``: it died of a signal.
    """

    id: str
    status: Status
    detail: str  # "AssertionError: ...", "signal 11", "3 s"; empty when passed
    seconds: float  # wall time from the program's start to its end
    sandbox: str  # name of the sandbox it ran in

    @property
    def passed(self) -> bool:
        return self.status == "passed"


class Sandbox(Protocol):
    name: str
    layers: tuple[str, ...]  # the walls that stand, for the record

    def run(self, programs: Iterable[Program], limits: Limits, workers: int) -> Iterator[Verdict]:
        """One verdict per program as they finish, in any order, ``workers`` at a time; programs are
        taken from the iterable only as fast as they are run.

        Raises:
            SandboxError: the sandbox itself broke (never the fault of a program).
        """
        ...
