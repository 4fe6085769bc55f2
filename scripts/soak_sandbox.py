#!/usr/bin/env python3
"""A third hostile, two thirds honest: thousands of programs through the sandbox, every verdict checked,
and what is left behind counted.

    python scripts/soak_sandbox.py --programs 20000 > soak.md
    python scripts/soak_sandbox.py --load --programs 20000 --seconds 600

The second makes a load of its own (``--hogs`` endless loops, which end with it) and judges programs
that take a good part of their limit, or more than it: load may turn no verdict into another. It ends
after ``--seconds`` and says how many it did.

The hostile third are the attacks of tests/sandbox/attacks, in turn. Those that took a good part of the
limit when each ran once at the start take part in only one of ``--slow-every`` rounds, so that the
soak takes minutes; their number is printed. The honest ones are right answers, wrong answers and
exceptions, each of them another, so that a verdict given to the wrong program is noticed; every fourth
also compares everything around it with a fresh lane (folder, environment, limits, descriptors, ...).

Prints tables in markdown. Exits with 1 if a verdict was wrong, the host was reached, something was left
behind (processes, threads, descriptors, mounts, control groups, files, shared memory), or memory grew.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "sandbox"))
from attacks import ATTACKS, LIMITS, Attack, _host

from qeval.sandbox import Limits, Program, Sandbox, Verdict, find_sandbox
from qeval.sandbox.lane import NICENESS

SLOW_S = 0.25  # of a limit of 1 s
GROWTH_MIB = 16.0  # of the scoring process, after the first tenth of the programs
LANE_MIB = 256.0  # of a judge: malloc keeps some of what the largest values took, but not ever more
SHOWN = 20  # wrong verdicts that are printed
MIB = 1 << 20
CORES = len(os.sched_getaffinity(0))
SHORT, LONG = 0.06, 3.0  # limits under load, seconds; with the second, as long as in a real scoring
LONG_EVERY = 500  # programs
HOG = """\
import os, sys, time
end, parent = time.monotonic() + float(sys.argv[1]), int(sys.argv[2])
os.nice(int(sys.argv[3]) - os.getpriority(os.PRIO_PROCESS, 0))
while time.monotonic() < end and os.getppid() == parent:
    for _ in range(1_000_000): pass
"""
# What a program does for S seconds of its own, and what its verdict is.
BURN = """\
import time
def burn(s):
    end = time.thread_time() + s
    while time.thread_time() < end: pass
"""
UNDER_LOAD = {
    "at once": ("def f(x): burn(S); return x + 1", "passed"),
    "call by call": ("def f(x): burn(S / 20); return x + 1", "passed"),
    "when it is loaded": ("burn(S)\ndef f(x): return x + 1", "passed"),
    "in a thread": (
        "import threading\ndef f(x):\n    t = threading.Thread(target=burn, args=(S,))\n"
        "    t.start(); t.join()\n    return x + 1",
        "passed",
    ),
    "asleep": ("def f(x): time.sleep(S / 2); burn(S / 4); return x + 1", "passed"),
    "wrong": ("def f(x): burn(S); return x", "failed: AssertionError"),
    "raises": ("def f(x): burn(S); raise KeyError(x)", "failed: KeyError"),
    "ends": ("import os\ndef f(x): burn(S); os._exit(3)", "failed: exit"),
    "endless": ("def f(x):\n    while True: pass", "timeout"),
    "asleep for ever": ("def f(x): time.sleep(1000)", "timeout"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=CORES)
    parser.add_argument("--slow-every", type=int, default=20, help="rounds between slow attacks")
    parser.add_argument("--load", action="store_true", help="no attacks: programs near their limits")
    parser.add_argument("--hogs", type=int, default=2 * CORES, help="endless loops beside them")
    parser.add_argument("--hog-niceness", type=int, default=NICENESS, help="[default: the lanes']")
    parser.add_argument("--seconds", type=float, default=600.0, help="of --load, at most")
    args = parser.parse_args()
    sandbox = find_sandbox()
    if args.load:
        sys.exit(under_load(sandbox, args))
    _host.adopt_orphans(True)
    before = _host.belongings()
    with _host.Host() as host:
        soak = Soak(sandbox, host, args.programs, args.workers, args.slow_every)
        soak.run()
        hits = host.hits()
    left = _host.leaks(before)
    after = _host.belongings()
    print(soak.summary())
    print(soak.memory_table())
    print(
        table(("left behind", "before", "after"), ((k, len(before[k]), len(after[k])) for k in before))
    )
    faults = [*soak.wrong[:SHOWN], *hits, *(f"left behind: {thing}" for thing in left), *soak.memory()]
    print(
        "\n".join(f"- {fault}" for fault in faults)
        or "No wrong verdict, nothing reached, nothing left."
    )
    sys.exit(1 if faults else 0)


@dataclass
class Soak:
    """One run, and what it found."""

    sandbox: Sandbox
    host: _host.Host
    programs: int
    workers: int
    slow_every: int
    wrong: list[str] = field(default_factory=list)
    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)  # (kind, status) -> programs
    slow: set[str] = field(default_factory=set)
    longest: tuple[float, str] = (0.0, "")  # seconds
    samples: list[tuple[int, float, float, float]] = field(default_factory=list)  # see memory_table

    def __post_init__(self) -> None:
        self._expected: dict[str, Attack | str] = {}  # of the programs that run now
        self._taken: dict[str, float] = {}
        self._started = time.monotonic()
        self._seconds = 0.0

    def run(self) -> None:
        self._trial()
        self._started, done = time.monotonic(), 0
        step = max(1, self.programs // 10)
        for verdict in self.sandbox.run(self._mixture(), LIMITS, self.workers):
            self._check(verdict)
            done += 1
            if done % step == 0:
                self._sample(done)
        self._seconds = time.monotonic() - self._started
        if done != self.programs:
            self.wrong.append(f"{done} verdicts of {self.programs} programs")

    def _trial(self) -> None:
        """Every attack once, to see which of them are slow."""
        target = self.host.target()
        self._fresh = _host.fresh_state(self.sandbox)
        programs = (self._hostile(0, attack, target) for attack in ATTACKS.values())
        for verdict in self.sandbox.run(programs, LIMITS, self.workers):
            name = verdict.id.partition(" ")[2]
            if time.monotonic() - self._taken[verdict.id] > SLOW_S:
                self.slow.add(name)
            self._check(verdict)
        self.statuses.clear()

    def _mixture(self) -> Iterator[Program]:
        target, attacks = self.host.target(), self._attacks()
        for n in range(self.programs):
            yield self._hostile(n, next(attacks), target) if n % 3 == 0 else self._honest(n)

    def _attacks(self) -> Iterator[Attack]:
        turn = 0
        while True:
            for name, attack in ATTACKS.items():
                if name not in self.slow or turn % self.slow_every == self.slow_every - 1:
                    yield attack
            turn += 1

    def _hostile(self, n: int, attack: Attack, target: dict[str, Any]) -> Program:
        return self._note(attack.program(f"{n} {attack.name}", target), attack)

    def _honest(self, n: int) -> Program:
        if n % 4 == 0:
            return self._note(_host.honest(f"{n} honest, looks around", self._fresh), "passed")
        right, wrong, error = (
            (f"def solve(x): return x * {n}", "passed"),
            (f"def solve(x): return x * {n} + 1", "failed: AssertionError"),
            (f"def solve(x): raise KeyError({n})", "failed: KeyError"),
        )
        code, expected = (right, right, wrong, error)[n // 3 % 4]
        test = f"assert solve(3) == {3 * n}\nassert solve(-1) == {-n}"
        return self._note(Program(f"{n} honest", code, test, names=("solve",)), expected)

    def _note(self, program: Program, expected: Attack | str) -> Program:
        self._expected[program.id] = expected
        self._taken[program.id] = time.monotonic()
        return program

    def _check(self, verdict: Verdict) -> None:
        expected = self._expected.pop(verdict.id)
        waited = time.monotonic() - self._taken.pop(verdict.id)
        self.longest = max(self.longest, (waited, verdict.id))
        hostile = isinstance(expected, Attack)
        self.statuses["hostile" if hostile else "honest", verdict.status] += 1
        right = (
            expected.contained(verdict) if isinstance(expected, Attack) else verdict.text == expected
        )
        if not right or self.host.secret in verdict.detail:
            self.wrong.append(f"{verdict.id}: {verdict.text} ({verdict.detail})")

    def _sample(self, done: int) -> None:
        seconds = time.monotonic() - self._started
        self.samples.append(
            (done, seconds, resident_mib("self"), max(map(resident_mib, lanes()), default=0))
        )
        print(f"{done} programs, {seconds:.0f} s", file=sys.stderr)

    def memory(self) -> list[str]:
        """What took too much, in words."""
        growth = max(own for _, _, own, _ in self.samples) - self.samples[0][2]
        lane = max(lane for _, _, _, lane in self.samples)
        found = [f"the scoring process grew by {growth:.0f} MiB"] if growth > GROWTH_MIB else []
        return found + ([f"a judge or zygote took {lane:.0f} MiB"] if lane > LANE_MIB else [])

    def summary(self) -> str:
        kinds = {
            kind: sum(n for (k, _), n in self.statuses.items() if k == kind)
            for kind, _ in self.statuses
        }
        rows = [
            ("sandbox", f"{self.sandbox.name}: {', '.join(self.sandbox.layers)}"),
            ("programs", ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))),
            (
                "attacks",
                f"{len(ATTACKS)}, of which {len(self.slow)} are slow (1 of {self.slow_every} rounds)",
            ),
            ("verdicts", ", ".join(f"{n} {k} {s}" for (k, s), n in sorted(self.statuses.items()))),
            ("wrong verdicts", len(self.wrong)),
            ("time", f"{self._seconds:.0f} s, {self.workers} workers, {self._rate():.0f} programs/s"),
            ("longest wait", f"{self.longest[0]:.1f} s ({self.longest[1]})"),
            ("limits", ", ".join(f"{k} {v}" for k, v in dataclasses.asdict(LIMITS).items())),
        ]
        return table(("soak", ""), rows)

    def _rate(self) -> float:
        return self.programs / self._seconds

    def memory_table(self) -> str:
        rows = ((n, f"{s:.0f}", f"{own:.1f}", f"{lane:.1f}") for n, s, own, lane in self.samples)
        return table(
            ("programs", "seconds", "scoring process, MiB resident", "largest judge or zygote, MiB"),
            rows,
        )


def under_load(sandbox: Sandbox, args: argparse.Namespace) -> int:
    """Print what came of it; 1 if a verdict was another than without load."""
    started, expected = time.monotonic(), {}
    done: Counter[tuple[str, str]] = Counter()
    wrong, slowest = [], 0.0

    def programs() -> Iterator[Program]:
        draw = random.Random(0)
        for n in range(args.programs):
            if time.monotonic() - started > args.seconds:
                return
            program, verdict = loaded(n, draw)
            expected[program.id] = (verdict, time.monotonic())
            yield program

    with hogs(args.hogs, args.hog_niceness, args.seconds + 60):
        for verdict in sandbox.run(programs(), Limits(timeout_s=SHORT), args.workers):
            right, since = expected.pop(verdict.id)
            kind = verdict.id.partition(" ")[2]
            done[kind, verdict.text] += 1
            slowest = max(slowest, time.monotonic() - since)
            if verdict.text != right:
                wrong.append(f"{verdict.id}: {verdict.text} ({verdict.detail}), not {right}")
    rows = [
        ("sandbox", f"{sandbox.name}, {args.workers} workers, {CORES} cores"),
        ("load", f"{args.hogs} endless loops of niceness {args.hog_niceness} (lanes: {NICENESS})"),
        ("verdicts", sum(done.values())),
        *((kind, f"{count} {text}") for (kind, text), count in sorted(done.items())),
        ("longest wait for a verdict", f"{slowest:.1f} s"),
        ("time", f"{time.monotonic() - started:.0f} s"),
        ("flipped", len(wrong)),
    ]
    print(table(("soak under load", ""), rows))
    print("\n".join(f"- {fault}" for fault in wrong[:SHOWN]))
    return 1 if wrong else 0


def loaded(n: int, draw: random.Random) -> tuple[Program, str]:
    """A program that takes up to three quarters of its limit, or never ends; its right verdict."""
    weights = [1 if verdict == "timeout" else 3 for _, verdict in UNDER_LOAD.values()]
    [(kind, (code, verdict))] = draw.choices(list(UNDER_LOAD.items()), weights)
    limit = LONG if n % LONG_EVERY == 0 else SHORT
    seconds = limit * draw.uniform(0.05, 0.5) if limit == SHORT else draw.uniform(0.95, 2.2)
    calls = 20 if kind == "call by call" else 1
    test = f"for x in range({calls}): assert f(x) == x + 1"
    id = f"{n} {kind}, limit {limit:g} s"
    code = f"{BURN}S = {seconds!r}\n{code}"
    return Program(id, code, test, names=("f",), timeout_s=limit), verdict


@contextmanager
def hogs(number: int, niceness: int, seconds: float) -> Iterator[None]:
    """Endless loops beside us, which end after ``seconds`` or with this process."""
    command = [sys.executable, "-c", HOG, str(seconds), str(os.getpid()), str(niceness)]
    running = [subprocess.Popen(command) for _ in range(number)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def lanes() -> Iterator[str]:
    """The pids of the judges and zygotes: the first two generations below this process."""
    parents = {str(os.getpid())}
    for _ in range(2):
        children = {
            pid
            for pid, parent in (
                (line.split()[0], _parent(line.split()[0])) for line in _host.descendants(os.getpid())
            )
            if parent in parents
        }
        yield from children
        parents = children


def _parent(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    except OSError:  # it has ended
        return ""


def resident_mib(pid: str) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:  # it has ended
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def table(head: tuple[str, ...], rows: Any) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, ("---",) * len(head), *rows)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
