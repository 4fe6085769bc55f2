"""Fenced code blocks of a model's answer, by CommonMark's rules as far as they concern code.

A fence is three or more backticks or tildes; the line that closes a block has at least as many of the
same, nothing behind them, and less than four spaces before them (counted from the opening one, so that
blocks in lists work). Beyond CommonMark: a fence inside a Python docstring closes nothing, however far
it is indented; code on the opening fence's own line belongs to the block, and so does code before the
closing one on its line, where that makes it Python; and tags may follow the closing one (``</answer>``,
the end of a turn).
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass

from qeval.tasks.coding.python_code import inside_a_string, parsed

_OPENING = re.compile(
    r"(?P<before>(?:[ \t]*>)*[ \t]*(?:(?:[-*+]|\d+[.)])[ \t]+)?)"
    r"(?:(?P<fence>`{3,})(?P<info>[^`]*)|(?P<tildes>~{3,})(?P<text>.*))$"
)
_SAME_LINE = re.compile(r"\w*[ \t]+((?:async |def |class |import |from |@).+)$")
_ENDS = r"[ \t]*(?:</?[^\s<>]+>)*[ \t]*"
_REPL = re.compile(r"(?:>>>|\.\.\.)(?: |$)")


@dataclass(frozen=True)
class Block:
    """Lines ``first`` to ``last`` of the answer (its fences included), and the code in them."""

    first: int
    last: int
    code: str
    closed: bool = True


def blocks(answer: str) -> list[Block]:
    """The fenced blocks in their order; one may be left open at the end. Blocks in a block of Markdown
    come after it."""
    lines = answer.split("\n")
    found, at = [], 0
    while at < len(lines):
        opening = _OPENING.match(lines[at])
        if opening is None:
            at += 1
            continue
        block = _block(lines, at, opening)
        found.append(block)
        if parsed(block.code) is None:
            found += [Block(at, block.last, inner.code) for inner in blocks(block.code)]
        at = block.last + 1
    return found


def _block(lines: list[str], first: int, opening: re.Match[str]) -> Block:
    depth, indent = opening["before"].count(">"), _width(opening["before"].replace(">", " "))
    content = [_unquoted(line, depth) for line in lines[first + 1 :]]
    fence = opening["fence"] or opening["tildes"]
    closing = re.compile(rf"([ \t]*){re.escape(fence)}{re.escape(fence[0])}*{_ENDS}$")
    marks = ((n, closing.match(line)) for n, line in enumerate(content))
    ends = [n for n, mark in marks if mark is not None and _width(mark[1]) < indent + 4]
    same = _SAME_LINE.match(opening["info"] or opening["text"] or "")
    head = [] if same is None else [same[1]]
    codes = [_code([*head, *content[:end]], indent) for end in ends]
    if not codes or parsed(codes[0]) is None:
        for n, line in enumerate(content[: ends[0]] if ends else content):
            if (last := line.rstrip()).endswith(fence) and last != fence:
                code = _code([*head, *content[:n], last.removesuffix(fence)], indent)
                if parsed(code) is not None:
                    return Block(first, first + 1 + n, code)
    if not ends:
        return Block(first, len(lines) - 1, _code([*head, *content], indent), closed=False)
    chosen = 0
    if inside_a_string(codes[0]):
        whole = (n for n, code in enumerate(codes) if parsed(code) is not None)
        chosen = next(whole, 0)
    return Block(first, first + 1 + ends[chosen], codes[chosen])


def _unquoted(line: str, depth: int) -> str:
    """Without the quotation marks (``>``) of a block that is quoted as a whole."""
    for _ in range(depth):
        line = re.sub(r"^[ \t]*> ?", "", line)
    return line


def _width(space: str) -> int:
    return len(space.expandtabs(4))


def _code(lines: list[str], indent: int) -> str:
    """Without the opening fence's indentation, and without a Python prompt's marks."""
    stripped = [re.sub(rf"^[ ]{{0,{indent}}}", "", line) for line in lines]
    if any(map(_REPL.match, stripped)) and _REPL.match(next(filter(str.strip, stripped))):
        stripped = [_REPL.sub("", line, count=1) for line in stripped if _REPL.match(line)]
    return textwrap.dedent("".join(f"{line}\n" for line in stripped))
