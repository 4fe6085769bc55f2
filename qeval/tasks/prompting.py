"""How a model is asked for a program and its answer read: what the benchmarks' modes are made of.

A mode turns a problem into prompt ids, says when a sequence is over, and turns the generated text into
a Sample's completion, prefix and raw text. Each is a protocol of its own (docs/protocols.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from qeval.lm import Stop
from qeval.tasks.codegen import FENCE_STOPS, StopScanner, cut, cut_fence, extract_code, stop_ids
from qeval.tasks.samples import Problem
from qeval.tokenizer import Tokenizer

Text = Callable[[Problem], str]


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


class Continuation:
    """The model continues a text, with the tokenizer's default special tokens before it, and is cut at
    the first stop. ``prefix`` is what the program begins with, where it is not the problem's prompt."""

    max_new_tokens = 512

    def __init__(
        self, tokenizer: Tokenizer, stops: Sequence[str], prompt: Text, prefix: Text | None = None
    ) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._prompt, self._prefix = prompt, prefix
        self.stop_ids = stop_ids(tokenizer, stops)
        self.stop: Stop | None = StopScanner(tokenizer, stops)

    def ids(self, problem: Problem) -> list[int]:
        return self._tokenizer.encode(self._prompt(problem))

    def answer(self, problem: Problem, text: str) -> Answer:
        prefix = None if self._prefix is None else self._prefix(problem)
        return Answer(cut(text, self._stops), prefix)


class Chat:
    """A chat request; the answer is free, its code is extracted and follows ``preamble``.

    The completion begins with a newline: behind the problem's whole prompt, which is a valid program
    (HumanEval's a function without a body), it gives the same verdict.
    """

    max_new_tokens = 1024

    def __init__(self, tokenizer: Tokenizer, request: Text, preamble: Text) -> None:
        self._tokenizer, self._request, self._preamble = tokenizer, request, preamble
        self.stop_ids = tokenizer.eos_ids
        self.stop: Stop | None = None

    def ids(self, problem: Problem) -> list[int]:
        return chat(self._tokenizer, self._request(problem))

    def answer(self, problem: Problem, text: str) -> Answer:
        code = extract_code(text, problem.entry_point)
        return Answer("\n" + code, self._preamble(problem), text)


class ChatPrefill:
    """A chat request whose answer is opened by a fenced block that begins with ``prompt``; the model
    continues inside the block. ``prefix`` as for a Continuation."""

    max_new_tokens = 512

    def __init__(
        self, tokenizer: Tokenizer, request: Text, prompt: Text, prefix: Text | None = None
    ) -> None:
        self._tokenizer, self._request = tokenizer, request
        self._prompt, self._prefix = prompt, prefix
        self.stop_ids = tokenizer.eos_ids
        self.stop: Stop | None = StopScanner(tokenizer, FENCE_STOPS, line_start=True)

    def ids(self, problem: Problem) -> list[int]:
        opening = "```python\n" + self._prompt(problem)
        asked = chat(self._tokenizer, self._request(problem))
        return asked + self._tokenizer.encode(opening, special=False)

    def answer(self, problem: Problem, text: str) -> Answer:
        prefix = None if self._prefix is None else self._prefix(problem)
        return Answer(cut_fence(text), prefix)


def chat(tokenizer: Tokenizer, request: str) -> list[int]:
    return tokenizer.chat([{"role": "user", "content": request}])
