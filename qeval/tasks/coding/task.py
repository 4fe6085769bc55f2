"""Coding benchmarks: a model writes programs, tests decide (docs/protocols.md).

What every such task does: ask for the completions, keep each on disk before its program is run, run the
programs while the model generates, estimate pass@k. A run that was killed continues from
``samples.jsonl`` and ``verdicts.jsonl`` in the cell's folder; ``qeval score`` scores the first again
without the model. A benchmark is a ``CodingTask`` with a loader (``samples.LOADERS``), modes and stops.
"""

from __future__ import annotations

import hashlib
import platform
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from pydantic import Field, model_validator

from qeval.core.artifact import ModelRef
from qeval.core.errors import NotOfferedError, UsageError, raise_all
from qeval.core.options import Options
from qeval.engines.base import LM, Sampling
from qeval.models.endpoint import is_text
from qeval.models.told import has_chat_template
from qeval.sandbox import Limits, allowed_here, find_sandbox
from qeval.tasks.base import Expected, Task, TaskContext, TaskResult
from qeval.tasks.coding.grader import WEAK_NOTE, Grader, expected_metrics, pass_metrics
from qeval.tasks.coding.prompting import Mode
from qeval.tasks.coding.samples import Problem, Sample, SampleFile, benchmark

if TYPE_CHECKING:
    from qeval.data.datasets import DataSource
    from qeval.models.tokenizer import Tokenizer

SAMPLES_FILE = "samples.jsonl"
VERDICTS_FILE = "verdicts.jsonl"
_COLDEST = 1e-3


class CodingOptions(Options):
    """A benchmark's own options are a subclass that says which modes it has."""

    n_samples: int = Field(1, ge=1, le=10_000)  # completions per problem
    k: list[int] = Field([1], min_length=1)
    temperature: float = Field(0.0, ge=0, le=100)  # 0: greedy
    top_p: float | None = Field(None, gt=0, le=1)  # None: 0.95 when sampling
    max_new_tokens: int | None = Field(None, ge=1, le=1_000_000)  # None: the mode's own
    mode: str | None = None  # None: instruct where the model has a chat template, else base
    timeout_s: float = Field(Limits.timeout_s, gt=0, le=86_400)
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> CodingOptions:
        if min(self.k) < 1:
            raise ValueError(f"k: {min(self.k)} is not a number of samples: give 1 or more")
        if max(self.k) > self.n_samples:
            raise ValueError(f"k: {max(self.k)} needs n_samples: {max(self.k)} or more")
        if 0 < self.temperature < _COLDEST:
            raise ValueError(f"temperature: under {_COLDEST:g} logits overflow: 0 is greedy")
        if self.greedy and self.n_samples > 1:
            raise ValueError(
                "n_samples over 1 needs a temperature over 0 (greedy samples are all equal)"
            )
        if self.greedy and self.top_p is not None:
            raise ValueError("top_p has no effect at temperature 0: leave it out or set a temperature")
        return self

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def nucleus(self) -> float:
        """The top_p in force."""
        return self.top_p if self.top_p is not None else 1.0 if self.greedy else 0.95

    @property
    def drawing(self) -> str:
        """How completions are drawn: ``greedy``, ``T0.8-p0.95-n20``."""
        if self.greedy:
            return "greedy"
        return f"T{self.temperature:g}-p{self.nucleus:g}-n{self.n_samples}"


OptionsT = TypeVar("OptionsT", bound=CodingOptions)


@dataclass(frozen=True)
class Asked:
    """A problem with its prompt's ids and the numbers of the samples it still needs."""

    problem: Problem
    ids: list[int]
    missing: list[int]


class CodingTask(Task[OptionsT], Generic[OptionsT]):
    needs: ClassVar[frozenset[str]] = frozenset({"generate"})
    on_simulated: ClassVar[bool] = True
    memory_rank: ClassVar[int]  # TaskResult.memory_rank

    @abstractmethod
    def benchmark_name(self, options: OptionsT) -> str:
        """For ``samples.benchmark`` and the protocol id."""

    @abstractmethod
    def mode(
        self, name: str, options: OptionsT, tokenizer: Tokenizer, problems: Mapping[str, Problem]
    ) -> Mode:
        """One of the modes of the options; those that begin with ``instruct`` need a chat template.
        ``problems`` are all of the benchmark, to take examples from."""

    def chosen(self, problems: Mapping[str, Problem], options: OptionsT) -> dict[str, Problem]:
        """The problems that are asked: all, unless a benchmark has splits."""
        return dict(problems)

    def variant(self, options: OptionsT, n_problems: int) -> Sequence[str]:
        """Further parts of the protocol id, where something is not the benchmark's default;
        ``n_problems`` is the number of those chosen."""
        return ()

    def preflight(self, options: OptionsT, data: DataSource, *, weak_sandbox: bool) -> None:
        """See Task.preflight: the problems and a sandbox."""
        raise_all(
            lambda: self.chosen(benchmark(self.benchmark_name(options), data).problems, options),
            lambda: find_sandbox(weak=weak_sandbox),
        )

    def preflight_model(self, options: OptionsT, model: ModelRef, data: DataSource) -> None:
        """Raises UsageError for a chat mode where the model has no chat template."""
        self._check_chat(options, options.mode or "base", has_chat_template(model) is not False)

    def expected(
        self, options: OptionsT, limit: int | None, model: ModelRef | None, data: DataSource
    ) -> Expected:
        found = benchmark(self.benchmark_name(options), data)
        whole = len(self.chosen(found.problems, options))
        n = whole if limit is None else min(limit, whole)
        metrics = expected_metrics(options.k, self.label(options))
        # An estimate of pass@k has k/n times the variance of one that has k draws, at the most, which
        # is 1/4 (Hoeffding 1948, theorem 5.2); a difference has two of them.
        draws = {} if options.greedy else {f"pass@{k}": k / (2 * options.n_samples) for k in options.k}
        return Expected("problems", n, metrics, draws=draws)

    def run(self, lm: LM, options: OptionsT, context: TaskContext) -> TaskResult:
        """pass@k for every k, with one value per problem.

        Raises:
            MissingExtraError: a package that holds the problems is not installed.
            DataError: the problems are nowhere to be found, or malformed.
            UsageError: a chat mode for a tokenizer without a chat template.
            SandboxError: no sandbox here, found out before anything is generated; or it broke.
        """
        found = benchmark(self.benchmark_name(options), context.data)
        chosen = self.chosen(found.problems, options)
        problems = dict(list(chosen.items())[: context.limit])
        sandbox = find_sandbox(weak=context.weak_sandbox)
        name = self.mode_name(options, context.tokenizer)
        _check_server(name, context)
        mode = self.mode(name, options, context.tokenizer, found.problems)
        protocol = self.protocol(options, name, mode, n_problems=len(chosen))
        limits, lowered = allowed_here(Limits(timeout_s=options.timeout_s))
        files = {"samples": context.out / SAMPLES_FILE, "verdicts": context.out / VERDICTS_FILE}
        place = {pair: at for at, pair in enumerate(_pairs(problems, options))}
        prompts = {task: mode.ids(problem) for task, problem in problems.items()}
        with (
            SampleFile(files["samples"], found.problems) as store,
            Grader(
                problems,
                sandbox,
                limits,
                path=files["verdicts"],
                progress=context.progress,
            ) as grader,
        ):
            for pair, sample in store.done.items():  # what a killed run left
                if pair in place:
                    grader.add(sample)
            asked = list(_asked(problems, prompts, options, store))
            for sample in _generate(lm, mode, options, asked, context, len(place)):
                store.add(sample)
                grader.add(sample)
            generated = time.monotonic()
            graded = grader.finish()
            scoring_s = time.monotonic() - generated
        graded.sort(key=lambda g: place[g.sample.task_id, g.sample.sample])
        samples = [g.sample for g in graded]
        weak = [WEAK_NOTE] if sandbox.name == "weak" else []
        return TaskResult(
            metrics=pass_metrics(graded, options.k, "/".join(filter(None, (protocol, context.mark)))),
            notes=(
                *weak,
                *lowered,
                *grader.notes(),
                *context.tokenizer.notes(),
                *_notes(samples, _max_new(mode, options)),
            ),
            files=files,
            facts={
                "problems_sha256": found.sha256,
                "prompts_sha256": hashlib.sha256(repr(list(prompts.values())).encode()).hexdigest(),
                "tokenizer_sha256": context.tokenizer.sha256,
                "sandbox": sandbox.name,
                "sandbox_layers": list(sandbox.layers),
                "sandbox_python": platform.python_version(),
                "verdicts": dict(Counter(g.verdict.status for g in graded).most_common()),
                "verdict_texts": dict(Counter(g.verdict.text for g in graded).most_common()),
                "scoring_s_after_generation": scoring_s,
            },
            context=max(len(prompts[s.task_id]) + (s.tokens or 0) for s in samples),
            memory_rank=self.memory_rank,
        )

    def mode_name(self, options: OptionsT, tokenizer: Tokenizer) -> str:
        """The mode asked for; None is ``instruct`` where the tokenizer has a chat template, else
        ``base``.

        Raises:
            UsageError: a chat mode for a tokenizer without a chat template.
        """
        name = options.mode or ("instruct" if tokenizer.has_chat_template else "base")
        self._check_chat(options, name, tokenizer.has_chat_template)
        return name

    def _check_chat(self, options: OptionsT, name: str, has_template: bool) -> None:
        if name.startswith("instruct") and not has_template:
            raise UsageError(
                f"{self.benchmark_name(options)} mode: {name} needs a chat template, this tokenizer "
                "has none: base"
            )

    def protocol(self, options: OptionsT, name: str, mode: Mode, *, n_problems: int) -> str:
        """The protocol id: whatever changes the number and is not the model.
        ``humaneval/base/greedy``, ``humaneval/instruct/T0.8-p0.95-n20/max512``."""
        max_new = _max_new(mode, options)
        parts = [
            f"{self.benchmark_name(options)}/{name}/{options.drawing}",
            *self.variant(options, n_problems),
            f"max{max_new}" if max_new != mode.max_new_tokens else "",
            f"{options.timeout_s:g}s" if options.timeout_s != Limits.timeout_s else "",
        ]
        return "/".join(part for part in parts if part)


def _check_server(name: str, context: TaskContext) -> None:
    """Raises NotOfferedError for a mode that a chat request cannot have: it continues no text."""
    if context.endpoint is not None and context.endpoint.api == "chat" and name != "instruct":
        raise NotOfferedError(
            f"{context.endpoint.name}: api: chat answers requests, and mode {name} continues a text: "
            "take mode: instruct, or api: completions"
        )


def _max_new(mode: Mode, options: CodingOptions) -> int:
    return options.max_new_tokens or mode.max_new_tokens


def _pairs(problems: Mapping[str, Problem], options: CodingOptions) -> Iterator[tuple[str, int]]:
    """Every (problem, number of a sample) of the run, in the benchmark's order."""
    return ((task, i) for task in problems for i in range(options.n_samples))


def _generate(
    lm: LM, mode: Mode, options: CodingOptions, asked: Sequence[Asked], context: TaskContext, total: int
) -> Iterator[Sample]:
    """The ``total`` samples less those that the file has, as they are finished."""
    written = total - sum(len(a.missing) for a in asked)
    sampling = Sampling(
        temperature=options.temperature,
        top_p=options.nucleus,
        max_new_tokens=_max_new(mode, options),
        seed=options.seed,
        stop_ids=mode.stop_ids,
    )
    context.progress(written, total, "completions")
    for sample in _samples(lm, mode, sampling, asked, context):
        yield sample
        written += 1
        context.progress(written, total, "completions")


def _asked(
    problems: Mapping[str, Problem],
    prompts: Mapping[str, list[int]],
    options: CodingOptions,
    store: SampleFile,
) -> Iterator[Asked]:
    for task, problem in problems.items():
        missing = [i for i in range(options.n_samples) if (task, i) not in store.done]
        if missing:
            yield Asked(problem, prompts[task], missing)


def _samples(
    lm: LM, mode: Mode, sampling: Sampling, asked: Sequence[Asked], context: TaskContext
) -> Iterator[Sample]:
    """The missing samples as they are finished; problems that miss the same ones go together. A
    sample's text depends on its number, so it is the one of a run that was not killed."""
    for one in asked:
        if len(one.ids) >= lm.max_seq_len:
            answer = vars(mode.answer(one.problem, one.ids, []))
            for i in one.missing:
                yield Sample(one.problem.task_id, sample=i, finish="no room", tokens=0, **answer)
    fitting = [one for one in asked if len(one.ids) < lm.max_seq_len]
    for numbers in sorted({tuple(one.missing) for one in fitting}):
        group = [one for one in fitting if tuple(one.missing) == numbers]
        prompts = [one.ids for one in group]
        drawing = replace(sampling, n=len(numbers), samples=numbers)
        for done in lm.generate(prompts, drawing, mode.stop):
            one = group[done.prompt]
            answer = vars(mode.answer(one.problem, one.ids, done.ids))
            yield Sample(
                one.problem.task_id,
                sample=done.sample,
                finish=done.finish,
                tokens=done.tokens if is_text(done.ids) else len(done.ids),
                **answer,
            )


def _notes(samples: Sequence[Sample], max_new: int) -> Iterator[str]:
    ends, n = Counter(sample.finish for sample in samples), len(samples)
    if ends["length"]:
        yield f"{ends['length']} of {n} completions ended by length (max_new_tokens {max_new})"
    if ends["nonfinite"]:
        yield f"{ends['nonfinite']} of {n} completions broken: the model's logits are not finite"
    if ends["no room"]:
        yield f"{ends['no room']} of {n} samples failed: prompt longer than the model's context"
