"""Stops of a continuation, and what comes before the function that is asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qeval.tasks.coding.codegen import (
    BASE_STOPS,
    FENCE,
    PREFILL_STOPS,
    StopScanner,
    cut,
    function_alone,
    preamble,
    stop_ids,
)


class Letters:
    """A tokenizer of one character per token; id 0 is EOS, id 1 a special ``<file_sep>``."""

    eos_ids = (0,)
    has_chat_template = False
    byte_ids = frozenset()

    def __init__(self):
        self.decoded = []

    def encode(self, text, *, special=True, parse_special=True):
        return [1] if text == "<file_sep>" else [ord(c) for c in text]

    def decode(self, ids, *, after=(), special=False):
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


def test_a_prefilled_block_ends_at_its_fence_and_at_what_follows_the_function():
    assert prefill("```\nDone") == ""
    assert prefill("    return 1\n```\nDone") == "    return 1"
    assert prefill("    return '```'") == "    return '```'"
    assert prefill("    return 1\n\nassert solve([]) == 2\n") == "    return 1\n"
    assert prefill("    return 1\n\n# Tests\nprint(solve([]))\n") == "    return 1\n"
    assert prefill("    return 1\n\nif __name__ == '__main__':\n") == "    return 1\n"
    assert prefill("def solve(xs):\n    return 1\n") == "def solve(xs):\n    return 1\n"
    scanner = StopScanner(Letters(), PREFILL_STOPS, FENCE)
    assert scanner([ord(c) for c in "```"])
    assert not scanner([ord(c) for c in "x```"])
    assert not scanner([ord(c) for c in "x" * 14 + "```"])
    assert scanner([ord(c) for c in "x" * 40 + "\nassert "])


def prefill(text):
    return cut(text, PREFILL_STOPS, FENCE)


def test_stop_ids_are_eos_and_the_stops_that_are_special_tokens():
    assert stop_ids(Letters(), BASE_STOPS) == (0, 1)


PROMPT = "from typing import List\n\ndef helper(x):\n    return x\n\ndef solve(xs: List[int]) -> int:\n"


def test_preamble_is_what_comes_before_the_entry_point():
    before = preamble(PROMPT, "solve")
    assert before == "from typing import List\n\ndef helper(x):\n    return x\n\n"
    assert PROMPT.startswith(before)
    assert preamble(PROMPT, "solv") == ""


HEAD = 'def solve(xs):\n    """Add."""\n'


@pytest.mark.parametrize(
    "after",
    [
        *("assert solve([]) == 2", "solve([1])", "print(solve([]))", "tests = [solve([])]", "1/0"),
        *("for x in [1]:\n    solve(x)", "try:\n    solve(1)\nfinally:\n    pass", "import unittest"),
        *("while True:\n    pass", '"""\nExamples', "with open('x') as f:\n    pass", "That is all."),
    ],
)
@pytest.mark.parametrize(
    "body",
    [
        *(
            "    return sum(xs)",
            "\n    # adds\n    return sum(\n        xs\n    )",
            "    if xs:\n\n        return 1",
        ),
        *(
            '    s = """\nflush left\n"""\n    return s',
            "    return sum(\nxs\n)",
            "def solve(xs):\n    return 1",
        ),
    ],
)
def test_a_prefilled_function_is_left_alone(body, after):
    assert function_alone(HEAD, f"{body}\n\n{after}\n") == f"{body}\n"
    assert function_alone(HEAD, f"{body}\n{after}") == body
    assert function_alone(HEAD, body) == body
