"""Stops of a continuation, and the code of every shape of chat answer seen."""

import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


class Letters:
    """A tokenizer of one character per token; id 0 is EOS, id 1 a special ``<file_sep>``."""

    eos_ids = (0,)
    has_chat_template = False

    def __init__(self):
        self.decoded = []

    def encode(self, text, *, special=True):
        return [1] if text == "<file_sep>" else [ord(c) for c in text]

    def decode(self, ids):
        self.decoded.append(len(ids))
        return "".join(chr(i) for i in ids if i > 1)


pieces = st.lists(st.sampled_from([*BASE_STOPS, "\n", "    x = 1", "def", "`", "é", "#", "class "]))


@given(pieces)
def test_cut_leaves_no_stop_and_only_takes_from_the_end(parts):
    text = "".join(parts)
    left = cut(text, BASE_STOPS)
    assert text.startswith(left)
    assert not any(stop in left for stop in BASE_STOPS)
    assert left == text or any(text[len(left) :].startswith(stop) for stop in BASE_STOPS)


@given(pieces)
def test_the_scanner_stops_at_the_very_token_that_completes_a_stop(parts):
    text = "".join(parts)
    tokenizer = Letters()
    scanner = StopScanner(tokenizer, BASE_STOPS)
    ids = [ord(c) for c in text]
    ended = next((n for n in range(1, len(ids) + 1) if scanner(ids[:n])), None)
    first = next((n for n in range(1, len(text) + 1) if cut(text[:n], BASE_STOPS) != text[:n]), None)
    assert ended == first


def test_the_scanner_decodes_a_bounded_tail():
    tokenizer = Letters()
    StopScanner(tokenizer, BASE_STOPS)([120] * 5000)
    assert max(tokenizer.decoded) <= 16


def test_a_fence_closes_at_the_start_of_a_line_only():
    assert cut_fence("```\nDone") == ""
    assert cut_fence("    return 1\n```\nDone") == "    return 1"
    assert cut_fence("    return '```'") == "    return '```'"
    scanner = StopScanner(Letters(), FENCE_STOPS, line_start=True)
    assert scanner([ord(c) for c in "```"])
    assert not scanner([ord(c) for c in "x```"])
    assert not scanner([ord(c) for c in "x" * 14 + "```"])


def test_stop_ids_are_eos_and_the_stops_that_are_special_tokens():
    assert stop_ids(Letters(), BASE_STOPS) == (0, 1)


PROMPT = '''from typing import List

def helper(x):
    return x

def solve(xs: List[int]) -> int:
    """ Sum.
    >>> solve([1])
    1
    """
'''


def test_preamble_is_what_comes_before_the_entry_point():
    before = preamble(PROMPT, "solve")
    assert before == "from typing import List\n\ndef helper(x):\n    return x\n\n"
    assert PROMPT.startswith(before)
    assert preamble(PROMPT, "solv") == ""


def block(code: str, language: str = "python") -> str:
    return f"```{language}\n{textwrap.dedent(code)}```\n"


RIGHT = "def solve(xs):\n    return sum(xs)\n"
IMPORTS = "import math\nfrom functools import reduce\n" + RIGHT
CLASS = "class Solution:\n    def solve(self, xs):\n        return sum(xs)\n"
HELPER = "\ndef g():\n    return 1\n"
REPEATED = PROMPT + "    return sum(xs)\n"

ANSWERS = {
    "one block": (block(RIGHT), RIGHT),
    "text around it": ("Sure!\n\n" + block(RIGHT) + "\nThis sums them.", RIGHT),
    "no language": (block(RIGHT, ""), RIGHT),
    "other language name": (block(RIGHT, "Python3 title=a.py"), RIGHT),
    "tildes": (f"~~~\n{RIGHT}~~~", RIGHT),
    "unclosed fence": (f"Here:\n```python\n{RIGHT}", RIGHT),
    "indented in a list": ("1. Do:\n\n" + textwrap.indent(block(RIGHT), "   "), RIGHT),
    "usage first": (block("print(solve([1]))") + block(RIGHT), RIGHT),
    "usage after": (block(RIGHT) + block("assert solve([1]) == 1"), RIGHT),
    "two solutions": (block(RIGHT) + block(RIGHT.replace("sum", "max")), RIGHT),
    "question first": (block(PROMPT) + "The solution:\n" + block(REPEATED), REPEATED),
    "question with pass first": (block("def solve(xs):\n    pass\n") + block(RIGHT), RIGHT),
    "only the question": (block(PROMPT), PROMPT),
    "imports inside": (block(IMPORTS), IMPORTS),
    "redefined": (block(RIGHT + RIGHT), RIGHT + RIGHT),
    "doctests repeated": (block(REPEATED), REPEATED),
    "class first": (block(CLASS) + block(RIGHT), RIGHT),
    "class only": (block(CLASS), CLASS),
    "syntax error": (block("def solve(xs) return 1\n"), "def solve(xs) return 1\n"),
    "other function": (block("def solver(xs):\n    return 1\n"), ""),
    "body only": (block("    return sum(xs)\n"), ""),
    "prose": ("I cannot solve this.", ""),
    "empty": ("", ""),
    "no fence": (RIGHT, RIGHT),
    "no fence, text before": ("The function:\n\n" + RIGHT, RIGHT),
    "no fence, text after": (RIGHT + "\nThis adds them up, one by one.", RIGHT),
    "no fence, one word after": (RIGHT + "\nExplanation: it adds.\n" + RIGHT, RIGHT),
    "no fence, imports": ("Code:\nimport math\n\n" + RIGHT + "\nDone it is.", "import math\n" + RIGHT),
    "no fence, two functions": (RIGHT + HELPER + "It works fine.", RIGHT + HELPER),
    "only the closing fence": (RIGHT + "```\nThis adds them.", RIGHT),
    "async": (block("async def solve(xs):\n    return 1\n"), "async def solve(xs):\n    return 1\n"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_extraction(name):
    answer, code = ANSWERS[name]
    assert extract_code(answer, "solve").rstrip("\n") == code.rstrip("\n")


@given(st.text(alphabet=st.sampled_from("`~\n df solve(x):\t'\"\\"), max_size=200))
def test_extraction_never_fails_and_defines_the_function_or_is_empty(answer):
    code = extract_code(answer, "solve")
    assert code == "" or "solve" in code


def test_a_strange_string_in_the_answer_warns_nobody():
    code = 'def solve(xs):\n    return "\\d"\n'
    assert extract_code(block(code), "solve") == code
