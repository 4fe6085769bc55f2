"""How a model is asked for a program and its answer read: what the benchmarks' modes are made of.

A mode turns a problem into prompt ids, says when a sequence is over, and turns the generated ids into
a Sample's completion, prefix and raw text. Each is a protocol of its own (docs/protocols.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from qeval.engines.base import Stop
from qeval.models.tokenizer import Tokenizer
from qeval.tasks.coding import reasoning
from qeval.tasks.coding.codegen import (
    FENCE,
    PREFILL_STOPS,
    StopScanner,
    cut,
    extract,
    function_alone,
    stop_ids,
)
from qeval.tasks.coding.samples import Problem

Text = Callable[[Problem], str]
Ids = Sequence[int]


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

    def answer(self, problem: Problem, prompt: Ids, ids: Ids) -> Answer:
        """Of the ids that a model wrote behind the prompt's."""
        ...


class Continuation:
    """The model continues a text, with the tokenizer's default special tokens before it and none behind
    it, and is cut at the first stop. ``prefix`` is what the program begins with, where it is not the
    problem's prompt."""

    max_new_tokens = 512

    def __init__(
        self, tokenizer: Tokenizer, stops: Sequence[str], prompt: Text, prefix: Text | None = None
    ) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._prompt, self._prefix = prompt, prefix
        self.stop_ids = stop_ids(tokenizer, stops)
        self.stop: Stop | None = StopScanner(tokenizer, stops)

    def ids(self, problem: Problem) -> list[int]:
        return self._tokenizer.prompt(self._prompt(problem))

    def answer(self, problem: Problem, prompt: Ids, ids: Ids) -> Answer:
        prefix = None if self._prefix is None else self._prefix(problem)
        return Answer(cut(self._tokenizer.decode(ids, after=prompt), self._stops), prefix)


class Chat:
    """A chat request; the answer is free, its code is extracted and follows ``preamble``, which only
    ``__future__`` imports may precede.

    The completion begins with a newline: behind the problem's whole prompt, which is a valid program
    (HumanEval's a function without a body), it gives the same verdict.
    """

    max_new_tokens = 1024

    def __init__(self, tokenizer: Tokenizer, request: Text, preamble: Text) -> None:
        self._tokenizer, self._request, self._preamble = tokenizer, request, preamble
        self._thinking = thinking(tokenizer)
        self.stop_ids = tokenizer.eos_ids
        self.stop: Stop | None = None

    def ids(self, problem: Problem) -> list[int]:
        return chat(self._tokenizer, self._request(problem))

    def answer(self, problem: Problem, prompt: Ids, ids: Ids) -> Answer:
        text = reasoning.answer(self._tokenizer, prompt, ids, self._thinking)
        future, code = extract(text, problem.entry_point)
        raw = self._tokenizer.decode(ids, after=prompt, special=True)
        return Answer("\n" + code, future + self._preamble(problem), raw)


class ChatPrefill:
    """A chat request whose answer is opened by a fenced block that begins with ``prompt``; the model
    continues inside the block, up to its end or to what follows the function. ``prefix`` as for a
    Continuation. Where the template lets the model think first, that is over before the block."""

    max_new_tokens = 512

    def __init__(
        self, tokenizer: Tokenizer, request: Text, prompt: Text, prefix: Text | None = None
    ) -> None:
        self._tokenizer, self._request = tokenizer, request
        self._prompt, self._prefix = prompt, prefix
        self.stop_ids = tokenizer.eos_ids
        self.stop: Stop | None = StopScanner(tokenizer, PREFILL_STOPS, FENCE)
        tag = thinking(tokenizer)
        self._opening = "" if tag is None else f"\n{reasoning.closing(tag)}\n\n"

    def ids(self, problem: Problem) -> list[int]:
        opening = f"{self._opening}{FENCE}python\n{self._prompt(problem)}"
        return chat(self._tokenizer, self._request(problem), opening)

    def answer(self, problem: Problem, prompt: Ids, ids: Ids) -> Answer:
        prefix = None if self._prefix is None else self._prefix(problem)
        text = cut(self._tokenizer.decode(ids, after=prompt), PREFILL_STOPS, FENCE)
        return Answer(function_alone(self._prompt(problem), text), prefix)


def chat(tokenizer: Tokenizer, request: str, opening: str = "") -> list[int]:
    """The ids of a request with the answer opened, of one text: a tokenizer may join across."""
    text = tokenizer.chat([{"role": "user", "content": request}]) + opening
    return tokenizer.encode(text, special=False)


def thinking(tokenizer: Tokenizer) -> str | None:
    """The tag that the chat template opens for the model to think in."""
    mark = "request"
    prompt = tokenizer.chat([{"role": "user", "content": mark}])
    return reasoning.left_open(prompt.rpartition(mark)[2])
