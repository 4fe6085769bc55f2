"""The host that the attacks aim at: secrets, listeners and a process, and whether one of them was hit;
what a run leaves behind; and the run itself.

    python _host.py [--lanes 2] [NAME ...]      the attacks, as the user who calls it; prints JSON

(with the repository and the folder above this one in PYTHONPATH).
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from attacks import ATTACKS, FOLDER, LIMITS, TESTS, Attack
from qeval.sandbox import Program, Sandbox, Verdict, find_sandbox

PR_SET_CHILD_SUBREAPER = 36
TARGET_PREFIX = "target-"
VICTIM = """\
import os, signal, sys
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, lambda number, frame: os.write(1, f"{number} ".encode()))
secret = sys.stdin.readline()
os.write(1, b"ready ")
while True:
    signal.pause()
"""


class Host:
    """Something to get at: secrets in files, in the environment and in another process, listeners of
    every kind, and a process that counts the signals it gets. A context manager."""

    def __init__(self) -> None:
        self.secret = f"canary-{secrets.token_hex(16)}"
        self.folders: list[Path] = []
        self.listeners: dict[str, socket.socket] = {}

    def __enter__(self) -> Host:
        for parent in dict.fromkeys([tempfile.gettempdir(), "/var/tmp", "/dev/shm"]):
            if os.access(parent, os.W_OK):
                folder = Path(tempfile.mkdtemp(prefix=TARGET_PREFIX, dir=parent))
                (folder / ".ssh").mkdir()
                (folder / ".ssh" / "id_ed25519").write_text(self.secret)
                self.folders.append(folder)
        os.environ["QEVAL_CANARY"] = self.secret
        self._listen()
        self.victim = subprocess.Popen(
            [sys.executable, "-I", "-c", VICTIM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        assert self.victim.stdin and self.victim.stdout
        self.victim.stdin.write(f"{self.secret}\n".encode())
        assert self.victim.stdout.read(6) == b"ready "
        self._standing = self._victims_standing()
        return self

    def __exit__(self, *_: object) -> None:
        os.environ.pop("QEVAL_CANARY", None)
        with self.victim as victim:
            victim.kill()
        for listener in self.listeners.values():
            listener.close()
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)

    def _listen(self) -> None:
        path, abstract = str(self.folders[0] / "s"), f"\0{self.secret[:20]}"
        for family, kind, name, address in (
            (socket.AF_INET, socket.SOCK_STREAM, "tcp", ("127.0.0.1", 0)),
            (socket.AF_INET, socket.SOCK_DGRAM, "udp", ("127.0.0.1", 0)),
            (socket.AF_UNIX, socket.SOCK_STREAM, "unix_stream", path + "1"),
            (socket.AF_UNIX, socket.SOCK_DGRAM, "unix_datagram", path + "2"),
            (socket.AF_UNIX, socket.SOCK_STREAM, "abstract_stream", abstract + "1"),
            (socket.AF_UNIX, socket.SOCK_DGRAM, "abstract_datagram", abstract + "2"),
        ):
            listener = socket.socket(family, kind)
            listener.bind(address)
            if kind == socket.SOCK_STREAM:
                listener.listen(64)
            self.listeners[name] = listener

    def target(self) -> dict[str, Any]:
        """The ``TARGET`` of an attack; no secret is in it."""
        names = {name: listener.getsockname() for name, listener in self.listeners.items()}
        return {
            "homes": [str(folder) for folder in self.folders],
            "canaries": [str(folder / ".ssh" / "id_ed25519") for folder in self.folders],
            "packages": list(packages()),
            "variable": "QEVAL_CANARY",
            "tests": str(FOLDER),
            "victim": self.victim.pid,
            "scorer": os.getpid(),
            "tcp": names["tcp"][1],
            "udp": names["udp"][1],
            "unix_stream": names["unix_stream"],
            "unix_datagram": names["unix_datagram"],
            "abstract_stream": names["abstract_stream"],
            "abstract_datagram": names["abstract_datagram"],
            **asdict(LIMITS),
        }

    def hits(self, verdicts: Iterable[Verdict] = ()) -> list[str]:
        """What happened to the host so far, in words; empty where nothing did."""
        found = [f"{v.id} tells the secret" for v in verdicts if self.secret[7:20] in v.detail]
        ready, _, _ = select.select(self.listeners.values(), [], [], 0)
        found += [f"{name} was reached" for name, s in self.listeners.items() if s in ready]
        assert self.victim.stdout
        if self.victim.poll() is not None:
            return [*found, f"the other process died ({self.victim.returncode})"]
        while select.select([self.victim.stdout], [], [], 0)[0]:
            found.append(f"the other process got the signals {self.victim.stdout.read(999)!r}")
        if self._victims_standing() != self._standing:
            found.append(f"the other process was changed: {self._victims_standing()}")
        for folder in self.folders:
            if (folder / ".ssh" / "id_ed25519").read_text() != self.secret:
                found.append(f"{folder} was written to")
        return found

    def _victims_standing(self) -> list[Any]:
        pid = self.victim.pid
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return [
            "stopped" if state[0] in "Tt" else "runs",
            os.getpriority(os.PRIO_PROCESS, pid),
            sorted(os.sched_getaffinity(pid)),
            os.sched_getscheduler(pid),
            Path(f"/proc/{pid}/limits").read_text(),
        ]


def packages() -> Iterator[tuple[str, str]]:
    """(folder, module in it) for what is installed on this machine beside the standard library of its
    interpreter: one or two of every folder below /usr/lib and of this Python's own."""
    for name in ("click", "pip"):
        # Not importlib.util's: setuptools' own finder takes a look at pip as a sign to stand back.
        if (spec := PathFinder.find_spec(name)) and spec.origin:
            yield str(Path(spec.origin).parents[1]), name
    standard = os.path.realpath(os.path.dirname(os.__file__))
    for folder in sorted(Path("/usr/lib").iterdir()):
        modules = [p for depth in ("", "*/", "*/*/") for p in folder.glob(f"{depth}*.py")]
        for path in [p for p in modules if not os.path.realpath(p).startswith(f"{standard}/")][:2]:
            yield str(path.parent), path.stem


# -- what a run leaves behind ------------------------------------------------------------------------


def adopt_orphans(yes: bool) -> None:
    """Make this process the parent of every orphan below it, so that :func:`belongings` sees it."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0)


# In /dev/shm: the attacks' targets, and what multiprocessing of tests beside these makes (vLLM's).
_OTHERS = (TARGET_PREFIX, "psm_", "mp-", "sem.mp-")


def belongings() -> dict[str, list[str]]:
    """Everything that could leak, by kind: what belongs to this process, and what of the machine an
    attack may have made (their files have ``hostile`` in their names)."""
    # Of the folders for temporary files its own: in /tmp others may be at work.
    kept = {Path(tempfile.gettempdir()), Path("/var/tmp"), Path("/dev/shm")}
    return {
        "processes": descendants(os.getpid()),
        "threads": os.listdir("/proc/self/task"),
        "descriptors": [_descriptor(fd) for fd in os.listdir("/proc/self/fd")],
        "mounts": Path("/proc/self/mountinfo").read_text().splitlines(),
        "cgroups": [str(p) for p in Path("/sys/fs/cgroup").glob(f"**/qeval-{os.getpid()}-*")],
        "files": [
            *(str(p) for folder in kept for p in folder.glob("*qeval*")),
            *(str(p) for folder in kept | {Path("/tmp")} for p in folder.glob("*hostile*")),
        ],
        "POSIX shared memory": [n for n in _listed("/dev/shm") if not n.startswith(_OTHERS)],
        "System V objects": [
            " ".join(line.split()[:2])
            for kind in ("shm", "msg", "sem")
            for line in _lines(f"/proc/sysvipc/{kind}")[1:]
        ],
    }


def leaks(before: dict[str, list[str]], patience_s: float = 5.0) -> list[str]:
    """What is there now and was not before; what ends by itself has ``patience_s`` to do so."""
    deadline = time.monotonic() + patience_s
    while True:
        _reap()
        now = belongings()
        found = [f"{kind}: {new}" for kind in now for new in set(now[kind]) - set(before[kind])]
        if not found or time.monotonic() > deadline:
            return sorted(found)
        time.sleep(0.05)


def _reap() -> None:
    """Do for adopted orphans that have ended what the first process of a machine does."""
    for line in descendants(os.getpid()):
        pid, _, state = line.split()
        if state == "Z":
            with suppress(ChildProcessError):
                os.waitpid(int(pid), os.WNOHANG)


def descendants(root: int) -> list[str]:
    """``pid name state`` of every process below ``root``."""
    children: dict[int, list[tuple[int, str]]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                name, _, rest = (entry / "stat").read_text().partition(" (")[2].rpartition(") ")
                state, parent = rest.split()[:2]
                line = f"{entry.name} {name.replace(' ', '_')} {state}"
                children.setdefault(int(parent), []).append((int(entry.name), line))
    found, todo = [], [root]
    while todo:
        for pid, line in children.get(todo.pop(), []):
            found.append(line)
            todo.append(pid)
    return found


def _descriptor(fd: str) -> str:
    try:
        return f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}"
    except OSError:  # the one that listed the folder
        return "gone"


def _listed(folder: str) -> list[str]:
    return os.listdir(folder) if os.path.isdir(folder) else []


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if os.path.exists(path) else [""]


# -- the run -----------------------------------------------------------------------------------------

STATE = """\
import gc, os, random, resource, signal, stat, sys, tempfile, threading

def solve(x):
    return x * x

def state():
    before = os.stat(tempfile.gettempdir())
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * 100_000)
    scratch = os.statvfs(tempfile.gettempdir())
    umask = os.umask(0o22)
    return {
        "environment": sorted(os.environ.items()),
        "scratch": sorted(os.listdir(tempfile.gettempdir())),
        "room": [scratch.f_blocks, scratch.f_bfree, scratch.f_files, scratch.f_ffree],
        "folder": [os.getcwd(), oct(before.st_mode), before.st_mtime > 1e9, before.st_size],
        "umask": umask,
        "user": [os.getresuid(), os.getresgid(), os.getgroups()],
        "limits": [(n, resource.getrlimit(getattr(resource, n))) for n in dir(resource) if "RLIMIT" in n],
        "handlers": [str(signal.getsignal(n)) for n in sorted(signal.valid_signals())],
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "pending": sorted(signal.sigpending()),
        "alarm": signal.getitimer(signal.ITIMER_REAL),
        "descriptors": list(descriptors()),
        "threads": threading.active_count(),
        "processes": list(processes()),
        "priority": [os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)],
        "cores": sorted(os.sched_getaffinity(0)),
        "modules": sorted(sys.modules),
        "imports": [sys.path, [str(type(f)) for f in sys.path_hooks], len(sys.meta_path)],
        "builtins": sorted((n, type(f).__name__) for n, f in __builtins__.items()),
        "interpreter": [sys.getrecursionlimit(), sys.getswitchinterval(), gc.get_threshold()],
        "draws": [random.random(), hash("x")],
    }

def descriptors():
    for fd in range(256):
        try:
            found = os.fstat(fd)
        except OSError:
            continue
        yield fd, stat.S_IFMT(found.st_mode), found.st_rdev

def processes():
    for pid in range(1, 2000):
        try:
            os.getpgid(pid)
        except OSError:
            continue
        if pid not in (1, os.getpid()):
            yield pid
"""
DIGEST = """\
import hashlib
def digests():
    assert solve(2) == 4
    return {key: (hashlib.sha256(repr(v).encode()).hexdigest(), v) for key, v in state().items()}
"""
SHOW = "class State(Exception): pass\ndef check(key): raise State(digests()[key][0])"
COMPARE = """
def check(expected):
    for key, (digest, value) in digests().items():
        assert digest == expected[key], f"{key} is {value!r}"
"""
STATES = [line.split('"')[1] for line in STATE.splitlines() if line.startswith('        "')]


def fresh_state(sandbox: Sandbox) -> dict[str, str]:
    """What a program finds in a fresh lane, a digest for each part."""
    names = ("solve", "state")
    programs = [Program(key, STATE, DIGEST + SHOW, f"check({key!r})", names=names) for key in STATES]
    verdicts = {v.id: v for v in sandbox.run(programs, LIMITS, workers=1)}
    bad = [v for v in verdicts.values() if v.text != "failed: State"]
    assert not bad, f"an honest program got {bad[0]}"
    return {key: verdict.detail.partition(": ")[2] for key, verdict in verdicts.items()}


def honest(id: str, fresh: dict[str, str]) -> Program:
    """A right answer that finds everything as in a fresh lane, or fails and says what is not."""
    return Program(id, STATE, DIGEST + COMPARE, f"check({fresh!r})", names=("solve", "state"))


@dataclass
class Report:
    """What came of a run: ``verdicts`` of the attacks and of the honest programs after them (``after
    NAME``), the wall time that each was waited for, and what happened to the host."""

    sandbox: str
    user: int
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    waited: dict[str, float] = field(default_factory=dict)  # seconds
    hits: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Report:
        found = json.loads(text)
        verdicts = {id: Verdict(**verdict) for id, verdict in found.pop("verdicts").items()}
        return cls(verdicts=verdicts, **found)


def run_all(sandbox: Sandbox, attacks: list[Attack], lanes: int = 2) -> Report:
    """Every attack, each with an honest program behind it in the same lane.

    Raises:
        AssertionError: the walls do not stand (then no attack was run).
    """
    adopt_orphans(True)
    try:
        return _run_all(sandbox, attacks, lanes)
    finally:  # else what other tests leave to the machine's first process would come here
        adopt_orphans(False)


def _run_all(sandbox: Sandbox, attacks: list[Attack], lanes: int) -> Report:
    report = Report(sandbox.name, os.getuid())
    before = belongings()
    with Host() as host:
        target = host.target()
        probe = (FOLDER / "_probe.py").read_text()
        code = Attack("probe", probe, "attack", ("passed",), "").program("probe", target)
        [verdict] = sandbox.run([code], LIMITS, 1)
        assert verdict.passed, f"the walls do not stand, so no attack was run: {verdict}"
        fresh = fresh_state(sandbox)
        threads = [_Lane(sandbox, attacks[lane::lanes], target, fresh, report) for lane in range(lanes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
            if thread.error:
                raise thread.error
        report.hits = host.hits(report.verdicts.values())
    report.leaks = leaks(before)
    return report


class _Lane(threading.Thread):
    """One ``run`` with one worker: attack, honest program, attack, ..."""

    def __init__(
        self,
        sandbox: Sandbox,
        attacks: list[Attack],
        target: dict[str, Any],
        fresh: dict[str, str],
        report: Report,
    ) -> None:
        super().__init__()
        self.sandbox, self.report = sandbox, report
        self.programs = [
            program
            for attack in attacks
            for program in (attack.program(attack.name, target), honest(f"after {attack.name}", fresh))
        ]
        self.error: BaseException | None = None

    def run(self) -> None:
        last = time.monotonic()
        try:
            for verdict in self.sandbox.run(self.programs, LIMITS, workers=1):
                self.report.verdicts[verdict.id] = verdict
                self.report.waited[verdict.id] = time.monotonic() - last
                last = time.monotonic()
        except BaseException as error:
            self.error = error


def in_the_open(attack: Attack, target: dict[str, Any]) -> str:
    """The attack with its test in one interpreter, as the field's harnesses run it: exit code 0 means
    that it got what it was after."""
    test = TESTS[attack.kind]
    after = "try:\n    check()\nexcept Escaped as got:\n    print(got)\nelse:\n    raise SystemExit('got nothing')"
    return f"{attack.code(target)}\n\n{test}\n{after if attack.kind == 'attack' else 'check()'}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lanes", type=int, default=2)
    parser.add_argument("names", nargs="*", help="of attacks; none: all")
    args = parser.parse_args()
    chosen = [ATTACKS[name] for name in args.names] or list(ATTACKS.values())
    print(run_all(find_sandbox(), chosen, args.lanes).to_json())


if __name__ == "__main__":
    main()
