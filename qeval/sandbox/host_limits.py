"""What the limits of this shell (``ulimit``) leave of a program's: a hard one cannot be raised."""

from __future__ import annotations

import errno
import math
import os
import resource
from collections.abc import Callable
from dataclasses import replace

from qeval.core.errors import SandboxError
from qeval.core.units import human_bytes
from qeval.sandbox.base import MIB, Limits

# Field of Limits: what it is, how a value is written, the least that a lane works with, and the
# resources that bound it, each with the letter that `ulimit` has for it.
BOUNDS: dict[str, tuple[str, Callable[[float], str], int, dict[str, str]]] = {
    "memory_bytes": ("of memory", human_bytes, 256 * MIB, {"RLIMIT_AS": "v", "RLIMIT_DATA": "d"}),
    "scratch_bytes": ("of files", human_bytes, MIB, {"RLIMIT_FSIZE": "f"}),
    "open_files": ("open files", "{:.0f}".format, 16, {"RLIMIT_NOFILE": "n"}),
    "threads": ("threads", "{:.0f}".format, 4, {"RLIMIT_NPROC": "u"}),
}
WANTING = {errno.EMFILE: "n", errno.EAGAIN: "u", errno.ENOMEM: "v"}


class HostLimitError(SandboxError):
    """A limit of this shell is too low for any sandbox."""


def allowed_here(limits: Limits) -> tuple[Limits, tuple[str, ...]]:
    """The limits that programs can have on this machine: those given, or the shell's where these are
    lower; and for a reader, which are.

    Raises:
        HostLimitError: one is too low for a sandbox; names it and the fix.
    """
    notes = []
    for field, (what, written, least, resources) in BOUNDS.items():
        asked = getattr(limits, field)
        hard, letter = min((_hard(name), letter) for name, letter in resources.items())
        if hard >= asked:
            continue
        if hard < least:
            raise HostLimitError(
                f"a sandbox needs {written(least)} {what}, and this shell's hard limit is "
                f"{written(hard)}: raise it (`ulimit -H{letter}`, which takes root)"
            )
        limits = replace(limits, **{field: int(hard)})
        notes.append(
            f"programs had {written(hard)} {what} instead of {written(asked)} (ulimit -{letter})"
        )
    return limits, tuple(notes)


def check_cpu(limits: Limits) -> None:
    """Raises HostLimitError where the kernel would kill a program before its time is over."""
    if (hard := _hard("RLIMIT_CPU")) < math.ceil(limits.timeout_s) + 1:
        raise HostLimitError(
            f"a program may take {limits.timeout_s:g} s, and this shell's hard limit of CPU time is "
            f"{hard:g} s: raise it (`ulimit -Ht`, which takes root)"
        )


def cannot_start(err: OSError) -> SandboxError:
    """The error of a lane that did not start; with the fix, where a limit of this shell is why."""
    letter = WANTING.get(err.errno or 0)
    if letter is None:
        return SandboxError(f"cannot start: {err}")
    return HostLimitError(
        f"cannot start: {os.strerror(err.errno or 0)}: raise `ulimit -{letter}`, or run fewer programs "
        "at once (--workers)"
    )


def _hard(name: str) -> float:
    hard = resource.getrlimit(getattr(resource, name))[1]
    return math.inf if hard == resource.RLIM_INFINITY else hard
