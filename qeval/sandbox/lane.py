"""A lane: a warm process behind its walls, to which one program after the other is sent.

    host (this module)  ->  judge (runs the tests)  ->  zygote (forks)  ->  the program's process

Starting a lane takes an interpreter and some mounts (0.1 s); a program in it takes one fork.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import select
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qeval.core.errors import SandboxError
from qeval.sandbox.base import MIB, Limits, Program, Verdict
from qeval.sandbox.cgroup import Group
from qeval.sandbox.clock import Clock, descendants
from qeval.sandbox.host_limits import cannot_start
from qeval.sandbox.inside import wire
from qeval.sandbox.system import DEVICES, System, environment, system

HERE = Path(__file__).parent
BOOT = "import sys; sys.path[0] = {here!r}; import inside.preload; from inside.main import main; main()"
START_S = 300.0  # for an interpreter to come up and the walls to be tried, on a machine however loaded
STOP_S = 2.0  # for a lane to report a program that was stopped
MAX_VERDICT = MIB
DETAIL_CHARS = 200
NICENESS = 10  # whoever waits for a score still wants to use the machine
EXPENDABLE = "1000"  # of all processes, the kernel is to kill these when memory runs out


@dataclass(frozen=True)
class Launch:
    """How a backend starts a lane: the command before the interpreter's own, and what is configured
    inside. ``scratch`` holds the mount options of /tmp where the lane itself puts up the walls of the
    kernel backend; ``here`` is the folder of ``inside/`` as the lane's interpreter sees it."""

    prefix: tuple[str, ...]
    python: str
    own: str
    scratch: str | None
    walled: bool  # there are namespaces around it
    here: str = str(HERE)
    landlock: bool = True
    seccomp: bool = True


class LaneBroken(Exception):
    """The lane has ended, or does not answer. A program may be the reason."""


def _step_back(pid: int) -> None:
    """Have a process wait for the others where cores are short, and go first where memory is."""
    Path(f"/proc/{pid}/oom_score_adj").write_text(EXPENDABLE)
    os.setpriority(os.PRIO_PROCESS, pid, NICENESS)


class Lane:
    """See the module. Close it, or everything in it lives until this process ends."""

    def __init__(self, launch: Launch, limits: Limits, marks: wire.Marks | None = None) -> None:
        """Start one; with ``marks`` its walls are tried, and ``layers`` holds the outcome.

        Raises:
            SandboxError: it does not start; says why.
        """
        self._limits = limits
        self._killed_before = 0
        self._stack = ExitStack()
        try:
            self._group = self._stack.enter_context(Group.create(limits))
            self._start(launch, marks)
        except OSError as err:
            self.close()
            raise cannot_start(err) from err
        except wire.WireError as err:
            self.close()
            raise SandboxError(f"cannot start: {err}") from err
        except BaseException:
            self.close()
            raise

    def _start(self, launch: Launch, marks: wire.Marks | None) -> None:
        found = system()
        ours, theirs = socket.socketpair()
        self._stack.callback(ours.close)
        self._host = ours.fileno()
        self._reader = wire.Reader(self._host)
        with theirs:
            self._process = subprocess.Popen(
                [*launch.prefix, launch.python, "-s", "-S", "-B", "-c", BOOT.format(here=launch.here)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=environment(found.python, launch.own, found.moved),
                start_new_session=True,
            )
        self._stack.callback(self.kill)
        pid = self._process.pid
        self._group.add(pid)  # before it does anything: it waits for its configuration
        _step_back(pid)
        with suppress(BrokenPipeError):  # it has ended already: its last words say why
            wire.send(self._host, self._configuration(launch, found, marks))
        answer = self._first_answer()
        if answer["error"]:
            raise SandboxError(answer["error"])
        for child in descendants(pid):  # bwrap may have forked before all this was said of it
            self._group.add(child)
            with suppress(OSError):  # one that has inherited it may be closed to us
                _step_back(child)
        self.layers: dict[str, str] = {**answer["layers"], **self._group.layers(pid)}
        self._clock = Clock(pid)

    def _configuration(
        self, launch: Launch, found: System, marks: wire.Marks | None
    ) -> dict[str, object]:
        limits = self._limits
        resources = {
            "RLIMIT_AS": limits.memory_bytes,
            "RLIMIT_FSIZE": limits.scratch_bytes,
            "RLIMIT_NOFILE": limits.open_files,
            "RLIMIT_CORE": 0,
            "RLIMIT_MSGQUEUE": 0,
        }
        if launch.scratch is not None:  # in a user namespace of its own, it counts the lane's only
            resources["RLIMIT_NPROC"] = limits.threads
        return {
            "files": found.files,
            "links": found.links,
            "hidden": found.hidden,
            "moved": found.moved,
            "readable": found.readable(walled=launch.walled),
            "devices": DEVICES,
            "own": launch.own,
            "scratch": launch.scratch,
            "landlock": launch.landlock,
            "seccomp": launch.seccomp,
            "limits": resources,
            "marks": marks and {**marks, "walled": launch.walled},
        }

    def _first_answer(self) -> Any:
        if not self._readable(START_S):
            raise SandboxError(f"silent for {START_S:g} s")
        try:
            return self._reader.receive(MAX_VERDICT)
        except wire.WireError:
            assert self._process.stderr is not None  # it is a pipe
            self._process.kill()
            lines = self._process.stderr.read().decode("utf-8", "replace").strip().splitlines()
            raise SandboxError(lines[-1][:300] if lines else "it ended without a word") from None

    def judge(self, program: Program, sandbox: str) -> Verdict:
        """Run one program.

        Raises:
            LaneBroken: this lane is of no more use; the program has no verdict.
        """
        limit = program.timeout_s or self._limits.timeout_s
        try:
            self._clock.start()
            wire.send(self._host, self._request(program, limit))
            answer = self._verdict(limit)
        except (OSError, wire.WireError) as err:
            raise LaneBroken(str(err)) from err
        if "broken" in answer:
            raise SandboxError(f"a wall did not go up: {answer['broken']}")
        status, detail = answer["status"], answer["detail"]
        if status == "killed" and self._out_of_memory():
            status, detail = "memory", "the control group's limit"
        elif status == "killed" and answer["cpu"] >= limit:  # the kernel's limit of CPU time was first
            status, detail = "timeout", f"{limit:g} s"
        return Verdict(program.id, status, _printable(detail), answer["cpu"], sandbox)

    def _out_of_memory(self) -> bool:
        """Whether the kernel has killed something in here for lack of memory since the last time."""
        before, self._killed_before = self._killed_before, self._group.out_of_memory()
        return self._killed_before > before

    def _request(self, program: Program, limit: float) -> wire.Request:
        return {
            "code": program.code,
            "setup": program.setup,
            "names": program.names,
            "test": program.test,
            "call": program.call,
            "timeout_s": limit,
            "seed": _seed(program),
            "reply_bytes": self._limits.reply_bytes,
        }

    def _verdict(self, limit: float) -> Any:
        """The judge's answer, or the verdict when the time is over."""
        while (left := self._clock.left(limit)) > 0:
            if self._readable(left):
                return self._reader.receive(MAX_VERDICT)
        if self._readable(0.0):  # it came in time, and only this process was late to hear of it
            return self._reader.receive(MAX_VERDICT)
        over = {"status": "timeout", "detail": f"{limit:g} s", "cpu": limit}
        self._clock.kill_program()
        if self._readable(STOP_S):  # the judge's view of it: a process that was killed
            return {**over, "cpu": self._reader.receive(MAX_VERDICT)["cpu"]}
        self.kill()  # the judge itself is stuck: with this lane it is over
        return over

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def _readable(self, timeout_s: float) -> bool:
        poller = select.poll()
        poller.register(self._host, select.POLLIN)
        return bool(poller.poll(math.ceil(timeout_s * 1000)))

    def close(self) -> None:
        """End every process in it."""
        self._stack.close()

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, 9)
        self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()


def _printable(text: str) -> str:
    """What a program chose, for a terminal: control characters and the like as ``\\x1b``."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(shown)[:DETAIL_CHARS]


def _seed(program: Program) -> int:
    """For what the tests draw: the same every time for one program, and another for every other."""
    parts = (program.code, program.setup, program.test, program.call, program.names)
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest(), "big")


@contextmanager
def host_marks() -> Iterator[wire.Marks]:
    """Things of this machine that no program may reach, for the probes to try (inside/probes.py)."""
    import ctypes
    import secrets
    import tempfile

    libc = ctypes.CDLL(None, use_errno=True)
    with ExitStack() as stack:
        file = stack.enter_context(tempfile.NamedTemporaryFile(prefix="qeval-mark-"))
        Path(file.name).chmod(0o644)
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract = f"qeval-{secrets.token_hex(8)}"
        unix.bind("\0" + abstract)
        unix.listen()
        key = secrets.randbits(30) | 1
        shared = libc.shmget(key, 4096, 0o1600 | 0o066)  # IPC_CREAT, readable by all
        if shared >= 0:
            stack.callback(libc.shmctl, shared, 0, None)  # IPC_RMID
        yield {
            "file": file.name,
            "port": server.getsockname()[1],
            "abstract": abstract,
            "shm": key,
            "pid": os.getpid(),
        }
