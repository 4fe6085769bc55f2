"""From what a model wrote to the code that is run: stops of a continuation, code of a chat answer.

docs/protocols.md. ``base``: the model continues the prompt and is cut at the first stop.
``instruct``: it answers in its own words and the code is extracted. ``instruct-prefill``: it continues
inside a fenced block that repeats the prompt, cut at the closing fence and where the function ends.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from qeval.models.tokenizer import Tokenizer
from qeval.tasks.coding.markdown import Block, blocks
from qeval.tasks.coding.python_code import (
    bound,
    has_words,
    lines_of,
    needed,
    parsed,
    solves,
    split_future,
)
from qeval.tasks.coding.reasoning import without_reasoning

BASE_STOPS = (
    *("\nclass ", "\ndef ", "\n#", "\n@", "\nprint", "\nif ", "\n```"),
    *("<file_sep>", "<|endoftext|>"),
)
PREFILL_STOPS = (*BASE_STOPS, "\nassert ")
FENCE = "```"
TAIL_TOKENS = 16  # a stop has at most 13 characters, and every visible token at least one

_IMPORT = re.compile(r"^(?:import[ \t]+[\w., \t]+|from[ \t]+[\w.]+[ \t]+import[ \t].+)$", re.MULTILINE)


def cut(text: str, stops: Sequence[str], first: str | None = None) -> str:
    """The text up to the first of the stops, all of it where none occurs; nothing where it begins with
    ``first``."""
    if first is not None and text.startswith(first):
        return ""
    found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return text[: min(found)] if found else text


def function_alone(head: str, text: str) -> str:
    """``text`` up to where the function is over that ``head`` begins and ``text`` continues: the first
    line at the margin behind which the program is complete. Calls, loops and tests of the model's own
    may follow, and are not run."""
    lines = text.split("\n")
    for n in range(1, len(lines)):
        before = "\n".join(lines[:n])
        if lines[n][:1].strip() and before.strip() and parsed(f"{head}{before}\n") is not None:
            return before
    return text


class StopScanner:
    """An ``lm.Stop``: has one sequence come to a stop? Decodes only the last few tokens of it, so it
    has to be asked after every token; ``first`` is a stop at the start of the text alone."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], first: str | None = None) -> None:
        self._tokenizer = tokenizer
        self.texts = tuple(stops)  # for engines that look for them in text
        self._first = first
        self._anchor = tokenizer.encode(
            "a", special=False
        )  # any text: there is a prompt before the ids

    def __call__(self, ids: list[int]) -> bool:
        start = max(0, len(ids) - TAIL_TOKENS)
        while start and ids[start] in self._tokenizer.byte_ids:
            start -= 1  # bytes in a row are decoded together
        text = self._tokenizer.decode(ids[start:], after=self._anchor)
        first = self._first if start == 0 else None
        return cut(text, self.texts, first) != text


def stop_ids(tokenizer: Tokenizer, stops: Sequence[str]) -> tuple[int, ...]:
    """The tokenizer's EOS ids and those of stops that are one special token, which decoding hides."""
    ids = set(tokenizer.eos_ids)
    for stop in stops:
        encoded = tokenizer.encode(stop, special=False)
        if len(encoded) == 1 and tokenizer.decode(encoded) == "":
            ids.update(encoded)
    return tuple(sorted(ids))


def preamble(prompt: str, entry_point: str) -> str:
    """What a prompt has before the function to complete: imports and helper functions."""
    match = re.search(rf"^def {re.escape(entry_point)}\b", prompt, re.MULTILINE)
    return prompt[: match.start()] if match else ""


def extract_code(answer: str, entry_point: str) -> str:
    """The program of a chat answer without its ``__future__`` imports; see ``extract``."""
    return extract(answer, entry_point)[1]


def extract(answer: str, entry_point: str) -> tuple[str, str]:
    """The program of a chat answer, its ``from __future__`` imports apart; empty where the entry point
    is nowhere defined.

    - What is in ``<think>`` is not part of the answer (reasoning.py).
    - An answer that is a program as it is.
    - The first fenced block (markdown.py) that defines the entry point. One that is not Python, only
      repeats the question (its body is a docstring, ``pass`` or ``...``) or has the function only in a
      class gives way to a later one. What it uses, and other blocks or import lines between them
      define, goes before it.
    - Else the lines around its ``def`` that look like a program.
    """
    text = without_reasoning(answer).replace("\r\n", "\n").lstrip("\ufeff")
    tree = parsed(text)
    if tree is not None and solves(tree, entry_point) and not has_words(tree):
        return split_future(text)
    found = [_trimmed(block, entry_point) for block in blocks(text)]
    defining = [n for n, block in enumerate(found) if _defines(block.code, entry_point)]
    if defining:
        return split_future(_whole(text, found, min(defining, key=_rank(found, entry_point))))
    return split_future(_unfenced(text, entry_point))


def _trimmed(block: Block, name: str) -> Block:
    """A block that is never closed ends where the program does: sentences may follow, half a line."""
    if block.closed or parsed(block.code) is not None:
        return block
    return replace(block, code=_unfenced(block.code, name) or block.code)


def _defines(code: str, name: str) -> bool:
    tree = parsed(code)
    return _definition(name).search(code) is not None or (tree is not None and solves(tree, name))


def _definition(name: str) -> re.Pattern[str]:
    return re.compile(rf"^[ \t]*(?:async[ \t]+)?(?:def|class)[ \t]+{re.escape(name)}\b", re.MULTILINE)


def _rank(found: Sequence[Block], name: str) -> Callable[[int], int]:
    """0: a solution, 1: no Python, 2: no solution. Of equal ones the first is taken."""

    def rank(n: int) -> int:
        tree = parsed(found[n].code)
        return 1 if tree is None else 0 if solves(tree, name) else 2

    return rank


# A program in blocks


class Offer(NamedTuple):
    """A statement outside the chosen block, at a line of the answer and of its block."""

    at: tuple[int, int]
    source: str
    names: set[str]  # that it binds


def _whole(text: str, found: Sequence[Block], chosen: int) -> str:
    """The chosen block behind what it needs of the others: of several statements that bind a name the
    last one before it, else the first one after it."""
    own = found[chosen]
    parts = [*_imports(text, found), *(block for n, block in enumerate(found) if n != chosen)]
    offers = sorted((offer for part in parts for offer in _offers(part)), key=lambda offer: offer.at)
    missing, taken = needed(own.code), {}
    while missing:
        name = missing.pop()
        fitting = [offer for offer in offers if offer.names & {name, "*"}]
        before = [offer for offer in fitting if offer.at[0] < own.first]
        for offer in before[-1:] or fitting[:1]:
            if offer.at not in taken:
                taken[offer.at] = offer.source
                missing |= needed(offer.source)
    return "\n".join([*(taken[at] for at in sorted(taken)), own.code])


def _offers(part: Block) -> Iterator[Offer]:
    tree = parsed(part.code)
    for statement in [] if tree is None else tree.body:
        at, names = (part.first, statement.lineno), bound(statement)
        if names:
            yield Offer(at, lines_of(part.code, statement), names)


def _imports(text: str, found: Sequence[Block]) -> Iterator[Block]:
    """Import lines between the blocks."""
    inside = {n for block in found for n in range(block.first, block.last + 1)}
    for n, line in enumerate(text.split("\n")):
        if n not in inside and _IMPORT.match(line.strip()) and parsed(line.strip()) is not None:
            yield Block(n, n, line.strip())


# A program without fences


def _unfenced(text: str, name: str) -> str:
    """The lines around the first definition that solves the problem, else around the first one, as far
    as they look like code, behind the import lines before them."""
    rows = [_CLOSED.sub("", _OPENED.sub(r"\1\2", row)) for row in text.split("\n")]
    binds = re.compile(rf"[ \t]*(?:(?:(?:async )?def|class) {name}\b|{name}[ \t]*(?::[^=]+)?=[^=])")
    regions = [_region(rows, n) for n, row in enumerate(rows) if binds.match(row)]
    trees = [parsed(_program(rows, *region)) for region in regions]
    solving = [r for r, tree in zip(regions, trees, strict=True) if tree and solves(tree, name)]
    for top, end in (solving or regions)[:1]:
        imports = [part.code for part in _imports("\n".join(rows[:top]), [])]
        return "\n".join([*imports, _program(rows, top, end)])
    return ""


def _program(rows: Sequence[str], top: int, end: int) -> str:
    return textwrap.dedent("\n".join(rows[top:end]))


def _region(rows: Sequence[str], at: int) -> tuple[int, int]:
    """First line, and last line + 1, of the program that line ``at`` is in."""
    enclosing = [n for n in range(at) if rows[n].strip() and _indent(rows[n]) < _indent(rows[at])]
    if enclosing and rows[enclosing[-1]].lstrip().startswith("class "):
        return _region(rows, enclosing[-1])
    end = _end(rows, at)
    top = at
    for n in reversed(range(at)):
        if not _belongs(rows[n], _indent(rows[at])):
            break
        if rows[n].strip() and _indent(rows[n]) == _indent(rows[at]):
            top = n
    ends = range(end, max(at, end - 50), -1)  # a sentence at the end may look like code
    whole = ((t, e) for t in (top, at) for e in ends if parsed(_program(rows, t, e)) is not None)
    return next(whole, (at, end))


def _end(rows: Sequence[str], at: int) -> int:
    """The line behind the last one that belongs to the program; those of a docstring all do."""
    quotes = ""
    for n in range(at, len(rows)):
        if not quotes and n > at and not _belongs(rows[n], _indent(rows[at])):
            return n
        for mark in _QUOTES.findall(rows[n]):
            quotes = mark if not quotes else "" if mark == quotes else quotes
    return len(rows)


def _belongs(row: str, indent: int) -> bool:
    own = _indent(row)
    return not row.strip() or own > indent or (own == indent and bool(_CODE.match(row.strip())))


def _indent(row: str) -> int:
    return len(row.expandtabs(4)) - len(row.expandtabs(4).lstrip())


_QUOTES = re.compile(r"\"{3}|'{3}")
# Marks of inline code and tags on the first and the last line of a program.
_OPENED = re.compile(r"^([ \t]*)(?:`|<\w+>|\[[A-Z]+\])((?:async |def |class |import |from |@).*?)`?$")
_CLOSED = re.compile(r"[ \t]*(?:</(?:code|answer|output|solution|python)>|\[/[A-Z]+\])$")
_CODE = re.compile(
    rf"""(?:async[ ])?def[ ] | class[ ] | @ | \# | [)\]}}] | {_IMPORT.pattern}
    | (?:if|elif|for|while|with|except)\b.*: | (?:else|try|finally): | assert[ ] | \"{{3}} | '{{3}}
    | [A-Za-z_][\w.]* (?:\[[^=]*\])? [ ]* (?::[^=]+)? [-+*/|&]? = [^=]
    | [A-Za-z_][\w.]* \(.*\) [ ]* (?:\#.*)? $""",
    re.VERBOSE,
)
