"""Shapes in which chat models answer a request for ``solve``, the sum of a list: a table of answers and
whether the program that is taken from each passes. Every draft in it gives a wrong sum."""

import contextlib
import io
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qeval.tasks.coding.codegen import extract, extract_code, preamble
from qeval.tasks.coding.reasoning import closing, left_open, without_reasoning

PROMPT = '''from typing import List

def helper(x):
    return x

def solve(xs: List[int]) -> int:
    """ Sum.
    >>> solve([1])
    1
    """
'''
RIGHT = """def solve(xs: List[int]) -> int:
    total = 0
    for x in xs:
        total += x
    return total
"""
WRONG = "def solve(xs):\n    return -1\n"
REDUCE = "def solve(xs):\n    return reduce(lambda a, b: a + b, xs, 0)\n"
ADD = "def add(a, b):\n    return a + b\n"
FOLD = (
    "def solve(xs):\n    total = 0\n    for x in xs:\n        total = add(total, x)\n    return total\n"
)
CLASS = "class Solution:\n    def solve(self, xs):\n        return sum(xs)\n"
DOCUMENTED = '''def solve(xs):
    """Sum.

    ```
    >>> solve([1])
    1
    ```
    """
    return sum(xs)
'''
NARROW = DOCUMENTED.replace("    ", "  ")
FLUSH = DOCUMENTED.replace("    ```", "```")


def block(code, language="python", fence="```"):
    return f"{fence}{language}\n{code}{fence}\n"


def indented(text, n=4):
    return textwrap.indent(text, " " * n)


DRAFT = f"A first idea:\n{block(WRONG)}That is wrong.\n"

PLAIN = {
    "one block": (block(RIGHT), True),
    "text around it": (f"Sure!\n\n{block(RIGHT)}\nThis sums them.", True),
    "no language": (block(RIGHT, ""), True),
    "another language's name": (block(RIGHT, "Python3 title=a.py"), True),
    "tildes": (block(RIGHT, "", "~~~"), True),
    "tildes around backticks": (block(f"s = '''\n```\n'''\n{RIGHT}", "python", "~~~"), True),
    "four backticks": (block(RIGHT, "python", "````"), True),
    "a longer closing fence": (f"```python\n{RIGHT}`````\nDone.", True),
    "a shorter fence inside": (block(f"s = '''\n```\n'''\n{RIGHT}", "python", "````"), True),
    "a block of Markdown": (block(f"# Answer\n\n{block(RIGHT)}", "markdown", "````"), True),
    "no closing fence, text after": (f"```python\n{RIGHT}\nThis adds them up.\n", True),
    "no closing fence, cut off": (f"```python\n{RIGHT}\nassert solve([1", True),
    "a closing fence behind code": (f"```python\n{RIGHT.rstrip()}```\nDone.", True),
    "a closing fence behind code, twice": (
        f"```python\n{RIGHT.rstrip()}```\nUse:\n```python\nprint(solve([1]))```\n",
        True,
    ),
    "no closing fence": (f"Here:\n```python\n{RIGHT}", True),
    "only a closing fence": (f"{RIGHT}```\nThis adds them.", True),
    "a fence within a line": (f"Sure! ```python\n{RIGHT}```\nHope it helps", True),
    "code on the fence's line": (f"```python {RIGHT}```", True),
    "a tag behind the fence": (f"<answer>\n{block(RIGHT).rstrip()}</answer>\nDone.", True),
    "an end of turn behind the fence": (f"{block(RIGHT).rstrip()}<|im_end|>\n{RIGHT[:20]}", True),
    "in a list": (f"1. Do:\n\n{indented(block(RIGHT), 3)}", True),
    "in a nested list": (f"- Do:\n    - this:\n\n{indented(block(RIGHT), 6)}\n", True),
    "behind a bullet": (f"- ```python\n{indented(RIGHT, 2)}  ```\n", True),
    "in a quotation": (textwrap.indent(block(RIGHT), "> ", lambda line: True), True),
    "CRLF": (block(RIGHT).replace("\n", "\r\n"), True),
    "a byte order mark": ("\ufeff" + block(RIGHT), True),
    "tabs": (block(RIGHT.replace("    ", "\t")), True),
    "a Python prompt": (
        block(">>> def solve(xs):\n...     return sum(xs)\n...\n>>> solve([1])\n1\n"),
        True,
    ),
}
CHOICE = {
    "usage first": (block("print(solve([1]))\n") + block(RIGHT), True),
    "usage after": (block(RIGHT) + block("assert solve([1]) == 2\n"), True),
    "output first": (f"It gives\n{block('solve([1]) -> 1', '')}\n{block(RIGHT)}", True),
    "two solutions, the first right": (block(RIGHT) + block(WRONG), True),
    "two solutions, the first wrong": (block(WRONG) + block(RIGHT), False),
    "question first": (
        block(PROMPT) + "The solution:\n" + block(PROMPT + "    return sum(xs)\n"),
        True,
    ),
    "question with a comment first": (block(PROMPT + "    # your code here\n") + block(RIGHT), True),
    "question with pass first": (block("def solve(xs):\n    pass\n") + block(RIGHT), True),
    "only the question": (block(PROMPT), False),
    "no Python first": (block("def solve(xs) -> sum:\n  <your code>\n") + block(RIGHT), True),
    "class first": (block(CLASS) + block(RIGHT), True),
    "class only": (block(CLASS), False),
    "a class and a function": (block(f"{CLASS}\nsolve = Solution().solve\n"), True),
    "a lambda": (block("solve = lambda xs: sum(xs)\n"), True),
    "another function": (block("def solver(xs):\n    return sum(xs)\n"), False),
    "a syntax error": (block("def solve(xs) return 1\n"), False),
    "prose": ("I cannot solve this.", False),
    "empty": ("", False),
}
PIECES = {
    "imports inside": (block(f"from functools import reduce\n{REDUCE}"), True),
    "imports in a block": (block("from functools import reduce\n") + block(REDUCE), True),
    "imports in prose": (f"You need\n\nfrom functools import reduce\n\nThen\n{block(REDUCE)}", True),
    "imports in a later block": (block(REDUCE) + "with\n" + block("from functools import *\n"), True),
    "helper in a block": (f"First\n{block(ADD)}then\n{block(FOLD)}", True),
    "helper in a later block": (block(FOLD) + "with\n" + block(ADD), True),
    "helper's first version wrong": (block(ADD.replace("+", "-")) + block(ADD) + block(FOLD), True),
    "helper with imports of its own": (
        block("import operator\n")
        + block("def add(a, b):\n    return operator.add(a, b)\n")
        + block(FOLD),
        True,
    ),
    "helper beside usage": (block(f"{ADD}\nassert add(1, 1) == 3\n") + block(FOLD), True),
    "a constant in a block": (block("ZERO = 0\n") + block(RIGHT.replace("= 0", "= ZERO")), True),
    "the prompt's helper": (block("def solve(xs):\n    return sum(map(helper, xs))\n"), True),
    "a docstring with a fence": (block(DOCUMENTED), True),
    "a docstring with a fence, indented by 2": (block(NARROW), True),
    "a docstring with a fence, not indented": (block(FLUSH) + "It works.\n" + block("1\n", ""), True),
    "a future import": (block(f"from __future__ import annotations\nimport math\n\n{RIGHT}"), True),
    "a main program": (block(f"{RIGHT}\nif __name__ == '__main__':\n    print(solve([1]))\n"), True),
}
UNFENCED = {
    "no fence": (RIGHT, True),
    "no fence, a whole program": (
        f"from functools import reduce\n\n\n{ADD}\n\n{FOLD}\nprint(solve([1]))\n",
        True,
    ),
    "no fence, text before": (f"The function:\n\n{RIGHT}", True),
    "no fence, text after": (f"{RIGHT}\nThis adds them up, one by one.", True),
    "no fence, one word after": (f"{RIGHT}\nExplanation: it adds.\n{WRONG}", True),
    "no fence, a program in prose": (f"Code:\nimport math\n\n{ADD}\n{FOLD}\nDone it is.", True),
    "no fence, helper after": (f"Here it is.\n{FOLD}\n{ADD}\nIt works fine.", True),
    "no fence, question first": (f"Given\n\n{PROMPT}\nwrite\n\n{RIGHT}", True),
    "indented": (f"The code:\n\n{indented(RIGHT)}\nThat is all.", True),
    "indented, with imports": (
        f"So:\n\n{indented('from functools import reduce' + chr(10) * 2 + REDUCE)}\nDone.",
        True,
    ),
    "tags": (f"[PYTHON]\n{RIGHT}[/PYTHON]\n[TESTS]\nassert solve([]) == 1\n[/TESTS]", True),
    "HTML": (f"<code>\n{RIGHT}</code>", True),
    "HTML on the lines of the code": (f"<code>{RIGHT.rstrip()}</code>\nDone.", True),
    "tags on the lines of the code": (f"[PYTHON]{RIGHT.rstrip()}[/PYTHON]\nDone.", True),
    "inline code": ("`def solve(xs): return sum(xs)`", True),
}
THOUGHT = {
    "think": (f"<think>\n{DRAFT}</think>\n\n{block(RIGHT)}", True),
    "think, unfenced": (f"<think>\nMaybe\n{WRONG}\nno\n</think>\n\n{RIGHT}", True),
    "think, never closed": (f"<think>\n{block(RIGHT)}So that is", False),
    "think, nothing after": (f"<think>\n{block(RIGHT)}</think>\nI cannot.", False),
    "only the closing tag": (f"{DRAFT}</think>\n{block(RIGHT)}", True),
    "think twice": (f"<think>{DRAFT}</think>\n{block(RIGHT)}<think>{DRAFT}</think>Done.", True),
    "think within think": (f"<think>a <think> b\n{DRAFT}</think>\n{block(RIGHT)}", True),
    "thinking with reflection": (
        f"<thinking>{DRAFT}<reflection>Hm.</reflection>{DRAFT}</thinking>\n<output>\n{block(RIGHT)}</output>",
        True,
    ),
    "thought": (f"<thought>\n{DRAFT}</thought>\n{block(RIGHT)}", True),
    "reasoning": (f"<reasoning>\n{DRAFT}</reasoning>\n{block(RIGHT)}", True),
    "seed": (f"<seed:think>\n{DRAFT}</seed:think>\n{block(RIGHT)}", True),
    "brackets": (f"[THINK]\n{DRAFT}[/THINK]\n{block(RIGHT)}", True),
    "triangles": (f"◁think▷\n{DRAFT}◁/think▷\n{block(RIGHT)}", True),
    "begin and end": (
        f"<|begin_of_thought|>\n{DRAFT}<|end_of_thought|>\n<|begin_of_solution|>\n{block(RIGHT)}",
        True,
    ),
    "START and END": (f"<|START_THINKING|>{DRAFT}<|END_THINKING|>\n{block(RIGHT)}", True),
    "channels": (
        f"<|channel|>analysis<|message|>{DRAFT}<|end|><|start|>assistant<|channel|>final<|message|>\n"
        f"{block(RIGHT)}",
        True,
    ),
    "sentences": (f"Here is my thought process:\n{DRAFT}Here is my response:\n{block(RIGHT)}", True),
    "steps": (f"Here are my reasoning steps:\n{DRAFT}[BEGIN FINAL RESPONSE]\n{block(RIGHT)}", True),
    "turns": (f"<|im_start|>think\n{DRAFT}<|im_start|>answer\n{block(RIGHT)}", True),
    "attributes": (f'<think effort="high">\n{DRAFT}</think>\n{block(RIGHT)}', True),
    "attributes, never closed": (f'<think effort="high">\n{DRAFT}', False),
    "a space in the tag": (f"<think >\n{DRAFT}</think >\n{block(RIGHT)}", True),
    "think_fast": (f"<think_fast>\n{DRAFT}</think_fast>\n{block(RIGHT)}", True),
    "antThinking": (f"<antThinking>\n{DRAFT}</antThinking>\n{block(RIGHT)}", True),
    "analysis": (f"<analysis>\n{DRAFT}</analysis>\n<answer>\n{block(RIGHT)}</answer>", True),
    "monologue": (f"<inner_monologue>\n{DRAFT}</inner_monologue>\n{block(RIGHT)}", True),
    "rationale, never closed": (f"<rationale>\n{block(RIGHT)}", False),
    "inner prefix": (f"<|inner_prefix|>{DRAFT}<|inner_suffix|>{block(RIGHT)}", True),
    "start behind the name": (f"<|thought_start|>{DRAFT}<|thought_end|>{block(RIGHT)}", True),
    "unused tokens": (f"<unused94>thought\n{DRAFT}<unused95>{block(RIGHT)}", True),
    "comparisons are no tags": (
        block(
            "def solve(xs):\n    plan = draft = 1\n    return sum(xs) if 0 <plan and draft> 0 else 0\n"
        ),
        True,
    ),
    "an index is no tag": (
        block("def solve(xs):\n    think = 0\n    return sum(xs) + [0][think]\n"),
        True,
    ),
}
ANSWERS = PLAIN | CHOICE | PIECES | UNFENCED | THOUGHT


def verdict(answer, opened=None):
    """Whether the program of an answer passes, run by hand."""
    future, code = extract(without_reasoning(answer, opened), "solve")
    space = {}
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            exec(f"{future}{preamble(PROMPT, 'solve')}\n{code}\n", space)
            return space["solve"]([1, 2, 4]) == 7 and space["solve"]([]) == 0
        except (SyntaxError, KeyError, NameError):
            return False


@pytest.mark.parametrize("name", ANSWERS)
def test_the_program_of_an_answer(name):
    answer, passes = ANSWERS[name]
    assert verdict(answer) == passes


def test_the_table_of_answers_is_as_long_as_it_should_be():
    assert len(ANSWERS) >= 60


@pytest.mark.parametrize("name", THOUGHT)
def test_a_tag_that_the_template_opened_is_missing_in_the_answer(name):
    answer, passes = THOUGHT[name]
    tag = left_open(answer[: answer.index("A first idea")]) if "A first idea" in answer else None
    if tag is not None and answer.startswith(tag):
        assert verdict(answer.removeprefix(tag), tag) == passes
        assert not verdict(block(RIGHT), tag), "never closed"
        assert verdict(f"{WRONG}{closing(tag)}{block(RIGHT)}", tag)


def test_a_prompt_that_closes_what_it_opened_leaves_nothing_open():
    assert left_open("assistant\n<think>\n") == "<think>"
    assert left_open("assistant\n<think>\n\n</think>\n\n") is None
    assert left_open("assistant\n") is None


texts = st.lists(st.sampled_from(["a ", "\n", "```", "<b>", "thinking", "x[think]", "</p>"])).map(
    "".join
)


@given(texts)
def test_the_answer_is_what_reasoning_leaves_of_it(text):
    assert without_reasoning(text) == text
    assert without_reasoning(f"<think>{text}</think>{text}") == text
    assert without_reasoning(f"{text}</think>{text}") == text
    assert without_reasoning(f"{text}<think>{text}") == text


@given(st.text(alphabet=st.sampled_from("`~\n df solve(x):\t'\"\\"), max_size=200))
def test_extraction_never_fails_and_defines_the_function_or_is_empty(answer):
    code = extract_code(answer, "solve")
    assert code == "" or "solve" in code


def test_a_strange_string_in_the_answer_warns_nobody():
    code = 'def solve(xs):\n    return "\\d"\n'
    assert extract_code(block(code), "solve") == code
