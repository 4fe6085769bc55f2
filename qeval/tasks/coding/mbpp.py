"""MBPP: pass@k of small Python programs written from a sentence and its tests (docs/protocols.md).

974 problems of Austin et al. 2021 (arXiv 2108.07732) in the format of google-research's ``mbpp.jsonl``,
or the 427 of ``sanitized-mbpp.json``, which its authors went over by hand. The problems of a split are
those of its task ids, as google-research's README and the hub have them.

- ``base``: a docstring of the task and its first test; the prompt, stops and cut of bigcode's
  evaluation harness (bigcode_eval/tasks/mbpp.py), after InCoder (Fried et al. 2022).
- ``few-shot``: the paper's prompt with the problems 2, 3 and 4 solved before it, joined by an empty
  line as in lm-evaluation-harness (lm_eval/tasks/mbpp).
- ``instruct``: a chat request with the task and all its tests.
"""

from __future__ import annotations

import ast
import builtins
import copy
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar, final

from pydantic import model_validator

from qeval.core.errors import DataError
from qeval.core.options import Options
from qeval.data.datasets import documents_sha256
from qeval.tasks.coding.prompting import Chat, Continuation, Mode
from qeval.tasks.coding.samples import Benchmark, Problem
from qeval.tasks.coding.task import CodingOptions, CodingTask

if TYPE_CHECKING:
    from qeval.data.datasets import DataSource
    from qeval.models.tokenizer import Tokenizer

T = TypeVar("T")

SPLITS = {"prompt": (1, 10), "test": (11, 510), "validation": (511, 600), "train": (601, 974)}
"""First and last task id of each."""
SANITIZED = {"prompt": 7, "test": 257, "validation": 43, "train": 120}
"""Problems of each in the sanitized file; the other has all ids."""
BUILTINS = frozenset(dir(builtins))
SHOTS = ("Mbpp/2", "Mbpp/3", "Mbpp/4")

DOCSTRING = '"""\n{text}\n{test}\n"""\n'
STOPS = ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n<|/", "\n```")
TASK = (
    "You are an expert Python programmer, and here is your task: {text} Your code should pass these "
    "tests:\n\n{tests}\n[BEGIN]\n"
)
DONE = "[DONE]"
REQUEST = (
    "Write a Python program for the following task. Answer with the whole program in one Python code "
    "block.\n\n{text}\n\nThese tests must pass:\n\n```python\n{tests}\n```"
)


class MbppOptions(CodingOptions):
    mode: Literal["base", "few-shot", "instruct"] | None = None
    split: Literal["prompt", "test", "validation", "train"] = "test"
    sanitized: bool = False  # only the problems that were gone over by hand

    @model_validator(mode="after")
    def _not_its_own_example(self) -> MbppOptions:
        if self.mode == "few-shot" and self.split == "prompt":
            raise ValueError("split: prompt holds the examples of mode few-shot; use another split")
        return self


@final
class Mbpp(CodingTask[MbppOptions]):
    version: ClassVar[int] = 2  # 2: as HumanEval's 3
    Options: ClassVar[type[Options]] = MbppOptions
    memory_rank: ClassVar[int] = 2

    def label(self, options: MbppOptions) -> str:
        parts = (
            "MBPP",
            "sanitized" if options.sanitized else "",
            options.mode or "",
            *_split(options),
            options.drawing,
        )
        return " ".join(part for part in parts if part)

    def benchmark_name(self, options: MbppOptions) -> str:
        return "mbpp-sanitized" if options.sanitized else "mbpp"

    def chosen(self, problems: Mapping[str, Problem], options: MbppOptions) -> dict[str, Problem]:
        """Raises DataError where the file has none of the split, or not the examples of few-shot."""
        first, last = SPLITS[options.split]
        found = {task: p for task, p in problems.items() if first <= _number(task) <= last}
        if not found:
            raise DataError(
                f"{self.benchmark_name(options)} split {options.split}: the file has no problem with a "
                f"task_id from {first} to {last}; use another split or file"
            )
        lacking = [t for t in SHOTS if t not in problems or problems[t].solution is None]
        if options.mode == "few-shot" and lacking:
            raise DataError(
                f"{self.benchmark_name(options)} mode few-shot: the file lacks its examples, "
                f"{', '.join(lacking)}; use another mode or file"
            )
        return found

    def variant(self, options: MbppOptions, n_problems: int) -> Sequence[str]:
        first, last = SPLITS[options.split]
        whole = SANITIZED[options.split] if options.sanitized else last - first + 1
        part = [f"{n_problems}-problems"] if n_problems != whole else []  # a file of one's own
        return [*_split(options), *part]

    def mode(
        self, name: str, options: MbppOptions, tokenizer: Tokenizer, problems: Mapping[str, Problem]
    ) -> Mode:
        if name == "base":
            return Continuation(tokenizer, STOPS, lambda problem: problem.prompt)
        if name == "instruct":
            return Chat(tokenizer, _request, lambda problem: "")
        shots = _shots(problems)
        return Continuation(tokenizer, [DONE], lambda p: shots + _task(p), lambda problem: "")


def _split(options: MbppOptions) -> list[str]:
    return [options.split] if options.split != "test" else []


def _request(problem: Problem) -> str:
    return REQUEST.format(text=problem.text, tests=problem.test)


def _task(problem: Problem) -> str:
    return TASK.format(text=problem.text, tests=problem.test)


def _shots(problems: Mapping[str, Problem]) -> str:
    examples = (problems[task] for task in SHOTS)
    return "".join(f"{_task(p)}{p.solution}\n{DONE}\n\n" for p in examples)


def _number(task: str) -> int:
    return int(task.partition("/")[2])


# The problems


def load(data: DataSource, name: str = "mbpp") -> Benchmark:
    """The problems of ``mbpp`` or ``mbpp-sanitized`` by task id, and the sha256 of their rows in that
    order.

    Raises:
        DataError: the file is nowhere to be found, or a row is not a problem; names file and line.
    """
    table = data.table(name)
    rows = {}
    for index, document in enumerate(table.documents):
        where = table.place(index)
        problem = _problem(json.loads(document), where)
        if problem.task_id in rows:
            raise DataError(f"{where}: task_id {_number(problem.task_id)} a second time; remove one")
        rows[problem.task_id] = (problem, document)
    order = sorted(rows, key=_number)
    problems = {task: rows[task][0] for task in order}
    return Benchmark(name, problems, documents_sha256(rows[task][1] for task in order))


def _problem(row: Mapping[str, object], where: str) -> Problem:
    number = _value(row, "task_id", int, where)
    text = _value(row, "text" if "text" in row else "prompt", str, where)
    code = _value(row, "code", str, where)
    tests = _strings(row, "test_list", where)
    setup = [
        *(_strings(row, "test_imports", where) if "test_imports" in row else []),
        *([_value(row, "test_setup_code", str, where)] if row.get("test_setup_code") else []),
    ]
    if not tests:
        raise DataError(f"{where}: test_list is empty; a problem has at least one test")
    prompt = DOCSTRING.format(text=text, test=tests[0])
    _parsed(prompt, "text", where)
    reference = _parsed(code, "code", where)
    before = _parsed("\n".join(setup), "test_setup_code and test_imports", where)
    asserts = _parsed("\n".join(tests), "test_list", where)
    used = _free_names(ast.Module([*before.body, *asserts.body], []))
    own, imports = _definitions(reference), _imports(reference)
    names = [name for name in used if name in own or name not in {*BUILTINS, *imports}]
    modules = [imports[name] for name in used if name in imports and name not in own]
    if not names:
        raise DataError(f"{where}: test_list uses nothing that code defines; mend one of them")
    functions = [name for name in names if isinstance(own.get(name), _FUNCTION)]
    return Problem(
        task_id=f"Mbpp/{number}",
        prompt=prompt,
        entry_point=(functions or names)[0],
        test="\n".join(tests),
        setup="\n".join([*modules, *setup]),
        names=tuple(names),
        solution=code if _separable(before, asserts, names) else None,
        text=text,
        known=False,
    )


_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
_DEFINITION = (*_FUNCTION, ast.ClassDef)


def _value(row: Mapping[str, object], key: str, kind: type[T], where: str) -> T:
    if key not in row:
        raise DataError(f"{where}: no key {key!r}; a problem has task_id, text, code and test_list")
    value = row[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"{where}: {key} is {value!r}; it must be a {kind.__name__}")
    return value


def _strings(row: Mapping[str, object], key: str, where: str) -> list[str]:
    values = _value(row, key, list, where)
    if not all(isinstance(value, str) for value in values):
        raise DataError(f"{where}: {key} is {values!r}; it must be a list of strings")
    return values


def _parsed(source: str, key: str, where: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" in a string is the file's own business
            return ast.parse(source)
    except (SyntaxError, ValueError) as err:  # ValueError: a null character
        raise DataError(f"{where}: {key} is not Python ({err}); mend it") from err


def _separable(setup: ast.Module, tests: ast.Module, names: Sequence[str]) -> bool:
    """Whether the code can pass while it runs in another process than its tests.

    It cannot where the setup builds on the code's own names (the sandbox defines them after it), or a
    test hands the code a class or function: neither is a plain value.
    """
    if set(names) & set(_free_names(setup)):
        return False
    calls = [node for node in ast.walk(tests) if isinstance(node, ast.Call)]
    inner = [node for call in calls if _name(call.func) in names for node in _arguments(call)]
    called = {id(call.func) for call in calls}
    values = [node for node in inner if id(node) not in called]
    return not any(isinstance(node, ast.Lambda) or _name(node) in BUILTINS for node in values)


def _arguments(call: ast.Call) -> list[ast.AST]:
    """Everything in a call's parentheses, at any depth."""
    return [node for argument in (*call.args, *call.keywords) for node in ast.walk(argument)]


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _free_names(tree: ast.Module) -> list[str]:
    """The names that are used and nowhere bound, the outermost calls' first."""
    nodes = list(ast.walk(tree))
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and _stores(node)}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    bound |= {node.name for node in nodes if isinstance(node, _DEFINITION)}
    bound |= set(_imports(tree))
    used = [node.id for node in nodes if isinstance(node, ast.Name) and not _stores(node)]
    return [name for name in dict.fromkeys(used) if name not in bound]


def _stores(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)


def _definitions(tree: ast.Module) -> dict[str, ast.stmt]:
    """What a program defines at its top level, by name: functions, classes and variables."""
    found: dict[str, ast.stmt] = {}
    for statement in tree.body:
        if isinstance(statement, _DEFINITION):
            found[statement.name] = statement
        elif isinstance(statement, ast.Assign):
            targets = [node for target in statement.targets for node in ast.walk(target)]
            found |= {node.id: statement for node in targets if isinstance(node, ast.Name)}
    return found


def _imports(tree: ast.Module) -> dict[str, str]:
    """The names that a program imports at its top level, each with a statement that does it alone."""
    found = {}
    for statement in tree.body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            for alias in statement.names:
                name = alias.asname or alias.name.partition(".")[0]
                one = copy.copy(statement)
                one.names = [alias]
                found[name] = ast.unparse(one)
    return found
