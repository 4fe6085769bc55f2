"""One fresh process per program: start it, listen within bounds, kill it, judge what was heard.

How a pass is proved. Every program gets a random secret over a pipe, which the runner has emptied
before the program starts. Only after the call returned does the runner write it to the channel. So no
exit code and nothing that is printed makes a pass: a verdict line without the secret cannot say
``passed``. (A program that searches the interpreter it shares with the runner can find the secret.)
"""

from __future__ import annotations

import fcntl
import math
import os
import secrets
import select
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from marshal import dumps
from pathlib import Path
from typing import get_args

from qeval.errors import SandboxError
from qeval.sandbox.base import Limits, Program, Status, Verdict

RUNNER = Path(__file__).with_name("runner.py")
START_S = 60.0  # for the sandbox and the interpreter to come up, on a machine however loaded
EXIT_S = 1.0  # for the process to be gone after it closed its channel
MAX_HEARD = 1 << 16  # bytes of the channel that are ever kept
READY = b"ready\n"


@dataclass(frozen=True)
class Heard:
    """What came through the channel, and why listening ended."""

    data: bytes
    end: str  # "eof" | "timeout" | "flood"
    seconds: float  # since the program was ready; 0 if it never was

    @property
    def ready(self) -> bool:
        return READY in self.data


class ProcessSandbox(ABC):
    """A Sandbox that starts a new process for every program."""

    name: str
    layers: tuple[str, ...]
    own_user_namespace: bool  # RLIMIT_NPROC counts the threads of a user: only where there is just one

    @abstractmethod
    def _process(
        self, request: int, secret: int, limits: Limits
    ) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """The runner, started with ``request`` as its input and ``secret`` as its argument, its output
        and errors in one pipe; everything it started is dead on exit."""

    def run(self, programs: Iterable[Program], limits: Limits, workers: int) -> Iterator[Verdict]:
        """See Sandbox.run."""
        pending: set[Future[Verdict]] = set()
        with ThreadPoolExecutor(workers) as pool:
            try:
                for program in programs:
                    pending.add(pool.submit(self._judge, program, limits))
                    if len(pending) >= 2 * workers:
                        done, pending = wait(pending, return_when=FIRST_COMPLETED)
                        yield from (future.result() for future in done)
                yield from (future.result() for future in pending)
            finally:
                for future in pending:
                    future.cancel()

    def _judge(self, program: Program, limits: Limits) -> Verdict:
        secret = secrets.token_hex(16).encode()
        heard, code = self._execute(program, secret, limits)
        if not heard.ready:
            raise SandboxError(f"the {self.name} sandbox did not start: {_last_line(heard)}")
        status, detail = _judgement(heard, code, secret, limits)
        return Verdict(program.id, status, detail, heard.seconds, self.name)

    def _execute(self, program: Program, secret: bytes, limits: Limits) -> tuple[Heard, int | None]:
        """What was heard, and the exit code of a process that ended by itself."""
        try:
            with (
                pipe_holding(secret) as pipe,
                _sealed(_request(program, self._resources(limits))) as request,
                self._process(request, pipe, limits) as process,
            ):
                assert process.stdout is not None  # both subclasses ask for a pipe
                heard = _listen(process.stdout.fileno(), limits.timeout_s)
                return heard, _exit_code(process) if heard.end == "eof" else None
        except OSError as err:
            raise SandboxError(f"the {self.name} sandbox cannot start a process: {err}") from err

    def _resources(self, limits: Limits) -> dict[str, int]:
        """Names of the resource module and the values that the runner sets before the program."""
        resources = {
            "RLIMIT_AS": limits.memory_bytes,
            "RLIMIT_CPU": math.ceil(limits.timeout_s) + 1,
            "RLIMIT_FSIZE": limits.scratch_bytes,
            "RLIMIT_NOFILE": limits.open_files,
            "RLIMIT_CORE": 0,
        }
        return {**resources, "RLIMIT_NPROC": limits.threads} if self.own_user_namespace else resources


def interpreter() -> Path:
    """The Python that runs programs: this one without its virtual environment."""
    major, minor = sys.version_info[:2]
    base = Path(sys.base_prefix, "bin", f"python{major}.{minor}")
    return (base if base.exists() else Path(sys.executable)).resolve()


@contextmanager
def pipe_holding(data: bytes) -> Iterator[int]:
    """The reading end of a pipe that holds ``data`` (less than a pipe's 4 KiB) and then ends."""
    reader, writer = os.pipe()
    try:
        with os.fdopen(writer, "wb") as file:
            file.write(data)
        yield reader
    finally:
        os.close(reader)


@contextmanager
def _sealed(data: bytes) -> Iterator[int]:
    """A file in memory that nobody can change any more: the program can find it under /proc, and a
    file on the disk would be a place outside its scratch folder to write to."""
    fd = os.memfd_create("request", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with os.fdopen(fd, "wb", closefd=False) as file:
            file.write(data)
        os.lseek(fd, 0, os.SEEK_SET)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
        yield fd
    finally:
        os.close(fd)


def _request(program: Program, resources: dict[str, int]) -> bytes:
    parts = {"code": program.code, "test": program.test, "call": program.call}
    return dumps({**parts, "limits": resources})


def _listen(channel: int, timeout_s: float) -> Heard:
    """Read until the channel is closed, the time is over, or there is more than anyone needs."""
    poller = select.poll()
    poller.register(channel, select.POLLIN)
    data, end = bytearray(), "flood"
    now = time.monotonic()
    ready_at, deadline = 0.0, now + START_S
    while len(data) < MAX_HEARD:
        if not poller.poll(max(0.0, deadline - now) * 1000):
            end = "timeout"
            break
        chunk = os.read(channel, MAX_HEARD)
        now = time.monotonic()
        if not chunk:
            end = "eof"
            break
        data += chunk
        if not ready_at and READY in data:
            ready_at, deadline = now, now + timeout_s
    seconds = time.monotonic() - ready_at if ready_at else 0.0
    return Heard(bytes(data), end, seconds)


def _exit_code(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(timeout=EXIT_S)
    except subprocess.TimeoutExpired:
        return None


def _judgement(heard: Heard, code: int | None, secret: bytes, limits: Limits) -> tuple[Status, str]:
    lines = heard.data.split(READY, 1)[1].split(b"\n")
    if secret + b" passed" in lines:
        return "passed", ""
    if heard.end == "timeout":
        return "timeout", f"{limits.timeout_s:g} s"
    if heard.end == "flood":
        return "output", f"more than {MAX_HEARD} bytes in the channel of the verdict"
    for line in reversed(lines):
        name, tab, detail = line.partition(b"\t")
        for status in get_args(Status):
            if tab and status != "passed" and name == status.encode():
                return status, detail.decode("utf-8", "replace")
    return _silent_end(code)


def _silent_end(code: int | None) -> tuple[Status, str]:
    """A program that ended without a line: 128 + n is bubblewrap's, -n Popen's way to tell signal n."""
    if code is None:
        return "killed", "it closed its channel"
    number = -code if code < 0 else code - 128
    if number > 0:
        return "killed", f"signal {number}"
    return "failed", f"exit {code} before the end of the test"


def _last_line(heard: Heard) -> str:
    if heard.end == "timeout":
        return f"silent for {START_S:g} s"
    lines = heard.data.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else "it ended without a word"
