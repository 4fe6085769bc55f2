#!/usr/bin/env python3
"""A third hostile, two thirds honest: thousands of programs through the sandbox, every verdict checked,
and what is left behind counted.

    python scripts/soak_sandbox.py --programs 20000 > soak.md

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
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "sandbox"))
from attacks import ATTACKS, LIMITS, Attack, _host

from qeval.sandbox import Program, Sandbox, Verdict, find_sandbox

SLOW_S = 0.25  # of a limit of 1 s
GROWTH_MIB = 16.0  # of the scoring process, after the first tenth of the programs
LANE_MIB = 256.0  # of a judge: malloc keeps some of what the largest values took, but not ever more
SHOWN = 20  # wrong verdicts that are printed
MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--slow-every", type=int, default=20, help="rounds between slow attacks")
    args = parser.parse_args()
    sandbox = find_sandbox()
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
