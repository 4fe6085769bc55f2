"""From what a model wrote to the code that is run: stops of a continuation, code of a chat answer.

docs/protocols.md. ``base``: the model continues the prompt and is cut at the first stop.
``instruct``: it answers in its own words and the code is extracted. ``instruct-prefill``: it continues
inside a fenced block that repeats the prompt, cut at the closing fence.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Sequence

from qeval.tokenizer import Tokenizer

BASE_STOPS = (
    *("\nclass ", "\ndef ", "\n#", "\n@", "\nprint", "\nif ", "\n```"),
    *("<file_sep>", "<|endoftext|>"),
)
FENCE_STOPS = ("\n```",)
TAIL_TOKENS = 16  # a stop has at most 13 characters, and every visible token at least one

_FENCED = re.compile(r"^[ \t]*(```+|~~~+)[^\n`]*\n(.*?)(?:^[ \t]*\1|\Z)", re.MULTILINE | re.DOTALL)
_IMPORT = re.compile(r"^(?:import[ \t]+[\w., \t]+|from[ \t]+[\w.]+[ \t]+import[ \t].+)$", re.MULTILINE)
# A line without indentation that may belong to a program: what follows a function in prose does not.
_CODE_LINE = re.compile(r"(?:(?:async )?def |class |@|#|[)\]}]|[A-Za-z_]\w*\s*(?::[^=]+)?=[^=])")


def cut(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of the stops; all of it where none occurs."""
    found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return text[: min(found)] if found else text


def cut_fence(text: str) -> str:
    """A continuation that begins at the start of a line, up to the line that closes its fence."""
    return cut("\n" + text, FENCE_STOPS)[1:]


class StopScanner:
    """An ``lm.Stop``: has one sequence come to a stop? Decodes only the last few tokens of it, so it
    has to be asked after every token; ``line_start`` counts the start of the text as a new line."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], *, line_start: bool = False) -> None:
        self._tokenizer = tokenizer
        self._stops = stops
        self._line_start = line_start

    def __call__(self, ids: list[int]) -> bool:
        tail = self._tokenizer.decode(ids[-TAIL_TOKENS:])
        if self._line_start and len(ids) <= TAIL_TOKENS:
            tail = "\n" + tail
        return any(stop in tail for stop in self._stops)


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
    """The code of a chat answer: the first fenced block that defines the entry point, else the text
    from its ``def`` on; empty where it is nowhere defined.

    A block that only repeats the question (no body but a docstring, ``pass`` or ``...``) or that has
    the function only inside a class gives way to a later one that defines it. A fence may be left open.
    """
    blocks = [textwrap.dedent(match[2]) for match in _FENCED.finditer(answer)]
    defining = [block for block in blocks if _definition(entry_point).search(block)]
    if defining:
        top = [block for block in defining if _solves(block, entry_point)]
        return (top or defining)[0]
    return _unfenced(answer, entry_point)


def _definition(entry_point: str) -> re.Pattern[str]:
    return re.compile(rf"^[ \t]*(?:async[ \t]+)?def[ \t]+{re.escape(entry_point)}\b", re.MULTILINE)


def _solves(block: str, entry_point: str) -> bool:
    """Whether the entry point is defined at the top level with a body; a block that does not parse
    is believed to."""
    tree = _parsed(block)
    if tree is None:
        return True
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return any(f.name == entry_point and not all(map(_is_filler, f.body)) for f in functions)


def _parsed(code: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" in a model's string is its own business
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _is_filler(statement: ast.stmt) -> bool:
    constant = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return constant or isinstance(statement, ast.Pass)


def _unfenced(answer: str, entry_point: str) -> str:
    """The imports before the ``def``, and from the ``def`` on as far as the lines look like code."""
    match = _definition(entry_point).search(answer)
    if match is None:
        return ""
    imports = _IMPORT.findall(answer[: match.start()])
    code = textwrap.dedent(answer[match.start() :])
    return "\n".join([*imports, _code_lines(code) if _parsed(code) is None else code])


def _code_lines(code: str) -> str:
    lines = code.split("\n")
    for number, line in enumerate(lines):
        indented = not line.strip() or line[0] in " \t"
        if not (indented or _CODE_LINE.match(line) or _IMPORT.match(line) or line.startswith('"""')):
            return "\n".join(lines[:number])
    return code
