"""`qeval score`: a file of saved samples -> pass@k, a report for a reader or a program. No model.

The verdicts are kept beside the samples (``NAME.verdicts.jsonl``), and the same call continues from
them.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from qeval.core.cores import usable_cores
from qeval.core.errors import DataError, StoreError, UsageError
from qeval.core.jsonl import lines, parsed
from qeval.core.progress import Progress
from qeval.core.record import Metric
from qeval.core.units import human_seconds
from qeval.data.datasets import DataSource
from qeval.sandbox import Limits, Sandbox, allowed_here, find_sandbox
from qeval.tasks.coding.grader import WEAK_NOTE, Grader, check_k, pass_metrics
from qeval.tasks.coding.samples import Sample, benchmark, read_samples
from qeval.tasks.coding.verdicts import Graded

MBPP = r"(mbpp/)?\d+"  # its task_ids
SHORTEST_S, LONGEST_S = 0.001, 86_400.0  # of --timeout
LANES_A_CORE = 8  # each is two processes; more of them only wait for each other


@dataclass(frozen=True)
class ScoreReport:
    """What scoring one file found."""

    benchmark: str
    metrics: tuple[Metric, ...]  # pass@k, one per k
    graded: tuple[Graded, ...]  # in the file's order
    counts: dict[str, int]  # verdicts by status
    problems: int  # that have a sample, and were scored
    programs: int  # different ones
    reused: int  # of them, judged by an earlier call
    seconds: float  # from the first sample to the last verdict
    sandbox: str
    layers: tuple[str, ...]
    notes: tuple[str, ...]
    verdicts: Path  # the file

    @property
    def rate(self) -> float:
        """Programs run per second."""
        return (self.programs - self.reused) / self.seconds

    def json_lines(self) -> Iterator[str]:
        """``{"verdict": ...}`` for every sample in the file's order, then ``{"totals": ...}``."""
        for graded in self.graded:
            yield json.dumps({"verdict": graded.to_json()})
        totals = {key: value for key, value in vars(self).items() if key not in ("metrics", "graded")}
        totals |= {"metrics": [asdict(metric) for metric in self.metrics], "samples": len(self.graded)}
        totals |= {"programs_per_second": self.rate, "verdicts": str(self.verdicts)}
        yield json.dumps({"totals": totals})

    def text(self) -> str:
        """The totals for a reader: pass@k with its 95% interval, verdicts by status, notes."""
        lines = [_line(metric) for metric in self.metrics]
        ends = ", ".join(f"{count:,} {status}" for status, count in self.counts.items())
        lines.append(f"{len(self.graded):,} samples of {self.problems} problems: {ends}")
        lines.append(self._ran())
        lines.append(f"sandbox: {self.sandbox} ({', '.join(self.layers)})")
        lines.append(f"verdicts: {self.verdicts}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def _ran(self) -> str:
        ran = self.programs - self.reused
        took = f" in {human_seconds(self.seconds)} ({self.rate:,.0f} a second)" if ran else ""
        parts = [f"{self.reused:,} verdicts reused", f"{ran:,} run{took}"]
        return f"{self.programs:,} programs for {len(self.graded):,} samples: {', '.join(parts)}"


def _line(m: Metric) -> str:
    if m.value is None:
        return (
            f"{m.name}: broken, the model's logits were not finite in {m.nonfinite:.1%} of the samples"
        )
    return f"{m.name}: {m.value:.4f}{_interval(m)}"


def score_file(
    samples: Path,
    *,
    k: Sequence[int] = (1,),
    name: str | None = None,
    data_dir: Path | None = None,
    timeout_s: float = Limits.timeout_s,
    weak_sandbox: bool = False,
    workers: int | None = None,
    verdicts: Path | None = None,
    progress: Progress | None = None,
) -> ScoreReport:
    """Score a file of samples of the benchmark ``name`` (None: what the file's task_ids say).

    A sample's number is its place among those of its problem. pass@k is over the problems that have
    samples; a note says how many have none. ``verdicts`` is where they are kept (None: beside).

    Raises:
        DataError: a malformed line, by file and line.
        UsageError: a ``k`` that is not 1 or more, or more than the samples of some problem; a timeout
            or a number of workers that makes no sense.
        StoreError: the verdicts cannot be written.
        SandboxError: no sandbox on this machine, or it cannot run a reference solution.
    """
    if not SHORTEST_S <= timeout_s <= LONGEST_S:
        raise UsageError(f"--timeout {timeout_s:g}: give {SHORTEST_S:g} to {LONGEST_S:,.0f} seconds")
    if workers is not None and workers > (most := LANES_A_CORE * usable_cores()):
        raise UsageError(
            f"--workers {workers}: at most {most} here, {LANES_A_CORE} for each of the cores"
        )
    loaded = benchmark(name or _named_in(samples), DataSource(data_dir))
    found = _numbered(read_samples(samples, loaded.problems))
    check_k(k, Counter(sample.task_id for sample in found))
    path = _verdicts_path(samples, verdicts)
    sandbox = find_sandbox(weak=weak_sandbox)
    limits, lowered = allowed_here(Limits(timeout_s=timeout_s))
    start = time.perf_counter()
    try:
        with Grader(
            loaded.problems, sandbox, limits, path=path, workers=workers, progress=progress
        ) as grader:
            for sample in found:
                grader.add(sample)
            graded = grader.finish()
    except StoreError as err:
        raise StoreError(f"{err} (--verdicts PATH keeps the verdicts elsewhere)") from err
    seconds = time.perf_counter() - start
    base = f"{loaded.name}/file"
    attempted = len({sample.task_id for sample in found})
    return ScoreReport(
        benchmark=loaded.name,
        metrics=pass_metrics(
            graded, k, base if timeout_s == Limits.timeout_s else f"{base}/{timeout_s:g}s"
        ),
        graded=tuple(graded),
        counts=dict(Counter(g.verdict.status for g in graded).most_common()),
        problems=len({g.sample.task_id for g in graded}),
        programs=grader.programs,
        reused=grader.reused,
        seconds=seconds,
        sandbox=sandbox.name,
        layers=sandbox.layers,
        notes=(*_notes(sandbox, attempted, len(loaded.problems)), *lowered, *grader.notes()),
        verdicts=path,
    )


def _interval(metric: Metric) -> str:
    if metric.low is None or metric.high is None:
        return "  (no interval: one problem)"
    return f"  95% {metric.low:.4f} to {metric.high:.4f}"


def _verdicts_path(samples: Path, chosen: Path | None) -> Path:
    name = samples.name.removesuffix(".gz").removesuffix(".jsonl")
    path = chosen or samples.with_name(f"{name}.verdicts.jsonl")
    if os.path.exists(path) and path.samefile(samples):  # noqa: PTH110 - Path.exists may raise
        raise UsageError(f"--verdicts {path} is the file of the samples: name another one")
    return path


def _named_in(samples: Path) -> str:
    """The benchmark of the first sample, by its task_id. Whoever reads them all reports what is wrong
    with it or with those after it. Raises DataError for a file that cannot be read."""
    for _, line in lines(samples):
        with suppress(DataError):
            first = parsed(line, "")
            task_id = first.get("task_id") if isinstance(first, dict) else None
            if isinstance(task_id, str | int) and re.fullmatch(MBPP, str(task_id), re.IGNORECASE):
                return "mbpp"
        break
    return "humaneval"


def _numbered(samples: Sequence[Sample]) -> list[Sample]:
    """The samples with their place among those of their problem, whatever number the file gives."""
    seen: Counter[str] = Counter()
    out = []
    for sample in samples:
        out.append(replace(sample, sample=seen[sample.task_id]))
        seen[sample.task_id] += 1
    return out


def _notes(sandbox: Sandbox, attempted: int, total: int) -> Iterator[str]:
    if sandbox.name == "weak":
        yield WEAK_NOTE
    if attempted < total:
        yield f"{total - attempted} of {total} problems have no sample"
