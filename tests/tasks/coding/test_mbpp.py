"""MBPP: the format, what is taken from a row, the three modes, and every reference in the sandbox."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from qeval.core.errors import DataError
from qeval.data.datasets import DataSource
from qeval.sandbox import Limits
from qeval.tasks.coding.mbpp import SPLITS, STOPS, Mbpp, MbppOptions, load
from qeval.tasks.coding.samples import Sample, benchmark, read_samples

SMALL = [json.loads(s) for s in Path(__file__).with_name("mbpp_small.jsonl").read_text().splitlines()]
ROW = {
    "task_id": 11,
    "text": "Write a function to double a number.",
    "code": "def double(n):\n    return 2 * n",
    "test_setup_code": "",
    "test_list": ["assert double(1) == 2", "assert double(0) == 0"],
    "challenge_test_list": [],
}


@pytest.fixture
def problems(mbpp_small):
    return load(mbpp_small).problems


@pytest.fixture
def write(tmp_path):
    """A data directory that holds these rows (or lines) as MBPP."""

    def write(*rows, name="mbpp.jsonl"):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        return DataSource(tmp_path, offline=True)

    return write


@pytest.fixture
def one(write):
    """The problem of a row that differs from ROW."""
    return lambda **changes: load(write({**ROW, **changes})).problems["Mbpp/11"]


# The rows


def test_a_row_becomes_a_problem(one):
    problem = one()
    assert problem.prompt == f'"""\n{ROW["text"]}\n{ROW["test_list"][0]}\n"""\n'
    assert problem.test == "assert double(1) == 2\nassert double(0) == 0"
    assert (problem.entry_point, problem.names, problem.setup) == ("double", ("double",), "")
    assert (problem.call, problem.solution, problem.text) == ("", ROW["code"], ROW["text"])


F = "def f(x=0): return x"
USES = {  # code, test, names of the code that it uses (the entry point first), setup
    "a class": (f"class P: pass\n{F}", "assert len([f([P()])]) == 1", ("f", "P"), ""),
    "two functions": (f"def g(): return 1\n{F}", "assert f(g()) == 1", ("f", "g"), ""),
    "a name of Python": ("def sum(a, b): return a + b", "assert sum(1, 2) == 3", ("sum",), ""),
    "names of Python": (F, "assert len(sorted(f([]))) == 0", ("f",), ""),
    "its own names": (F, "assert [f(x) for x in (1,)] == [1]", ("f",), ""),
    "a lambda's": (F, "assert (lambda y: f(y))(1) == 1", ("f",), ""),
    "an import": (f"import math\n{F}", "assert math.sqrt(f()) == 0", ("f",), "import math"),
    "one of two": (f"import re, math as m\n{F}", "assert m.pi > f()", ("f",), "import math as m"),
    "from": (f"from math import pi\n{F}", "assert f() < pi", ("f",), "from math import pi"),
    "a variable": ("f = lambda: 1", "assert f() == 1", ("f",), ""),
    "nobody's": (F, "assert f() < math.pi", ("f", "math"), ""),
}


@pytest.mark.parametrize("name", USES)
def test_the_names_that_the_tests_use_of_the_code(one, name):
    code, test, names, setup = USES[name]
    problem = one(code=code, test_list=[test])
    assert (problem.entry_point, set(problem.names)) == (names[0], set(names))
    assert (problem.setup, problem.solution) == (setup, code)


def test_the_setup_is_the_rows_own(one):
    problem = one(
        test_setup_code="a = 1\r\nb = math.pi",
        test_imports=["import math"],
        test_list=["assert double(a) < b"],
    )
    assert problem.setup == "import math\na = 1\r\nb = math.pi"
    assert problem.names == ("double",)


APART = {
    "setup with the code's class": {"test_setup_code": "p = double(1)"},
    "a class of Python": {"test_list": ["assert double(int) == 2"]},
    "a class inside": {"test_list": ["assert double([(1, str)]) == 2"]},
    "a function of Python": {"test_list": ["assert double(x=len) == 2"]},
    "a lambda": {"test_list": ["assert double(lambda: 1) == 2"]},
}


@pytest.mark.parametrize("name", APART)
def test_what_cannot_reach_the_code_has_no_solution(one, sandbox, name):
    """... and if the sandbox could do it after all, this test would say so."""
    problem = one(code="def double(n=0, x=0):\n    return 2", **APART[name])
    assert problem.solution is None
    program = Sample("Mbpp/11", "def double(n=0, x=0):\n    return 2").program(problem, "1")
    [verdict] = sandbox.run([program], Limits(), workers=1)
    assert not verdict.passed


def test_calls_inside_the_arguments_reach_it(one):
    test = "assert double(len(list(map(str, [1])))) == 2"
    assert one(test_list=[test]).solution is None  # `str` is handed on inside: taken for the worse
    assert one(test_list=["assert isinstance(double(len([1])), int)"]).solution == ROW["code"]


def test_the_sanitized_file_is_a_list_with_other_keys(write):
    row = {key: ROW[key] for key in ("task_id", "code", "test_list")} | {"prompt": ROW["text"]}
    row |= {"source_file": "a sheet", "test_imports": ["import math"]}
    source = write(json.dumps([{**row, "task_id": 9}, row]), name="sanitized-mbpp.json")
    found = load(source, "mbpp-sanitized")
    assert (found.name, list(found.problems)) == ("mbpp-sanitized", ["Mbpp/9", "Mbpp/11"])
    assert found.problems["Mbpp/9"].setup == "import math"
    assert found.problems["Mbpp/9"].text == ROW["text"]


def test_the_content_has_one_sha256(write):
    rows = [ROW, {**ROW, "task_id": 12}]
    first = load(write(*rows)).sha256
    backwards = [json.dumps({k: row[k] for k in reversed(row)}, indent=None) for row in rows[::-1]]
    assert load(write(*backwards)).sha256 == first
    assert load(write(ROW, {**ROW, "task_id": 13})).sha256 != first


BAD = {
    "torn": ('{"task_id": 12, "te', "not JSON"),
    "list": ("[1]", "not a JSON object"),
    "blank": ("", "not JSON"),
    "no code": ({k: v for k, v in ROW.items() if k != "code"}, "no key 'code'"),
    "no text": ({k: v for k, v in ROW.items() if k != "text"}, "no key 'prompt'"),
    "id": ({**ROW, "task_id": "12"}, "task_id is '12'; it must be a int"),
    "bool": ({**ROW, "task_id": True}, "task_id is True; it must be a int"),
    "tests": ({**ROW, "task_id": 12, "test_list": ["assert 1", 2]}, "test_list is .*list of strings"),
    "no tests": ({**ROW, "task_id": 12, "test_list": []}, "test_list is empty"),
    "same id": (ROW, "task_id 11 a second time"),
    "code": ({**ROW, "task_id": 12, "code": "def f(:"}, "code is not Python"),
    "test": ({**ROW, "task_id": 12, "test_list": ["assert ("]}, "text is not Python|test_list is not"),
    "text": ({**ROW, "task_id": 12, "text": 'Say """.'}, "text is not Python"),
    "unrelated": ({**ROW, "task_id": 12, "test_list": ["assert 1 == 1"]}, "nothing that code defines"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_line_is_named_by_file_and_line(write, tmp_path, name):
    line, message = BAD[name]
    with pytest.raises(DataError, match=message) as caught:
        load(write(ROW, line, {**ROW, "task_id": 99}))
    assert str(caught.value).startswith(f"{tmp_path / 'mbpp.jsonl'}:2: ")
    assert "\n" not in str(caught.value)


def test_no_file_is_one_line_with_places_and_url(tmp_path):
    with pytest.raises(DataError) as caught:
        benchmark("mbpp", DataSource(tmp_path, offline=True))
    for part in ("mbpp/mbpp.jsonl", "google-research/master/mbpp/mbpp.jsonl", "qeval data fetch mbpp"):
        assert part in str(caught.value)


def test_the_hub_gives_what_the_file_gives(mbpp_small, monkeypatch, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    asked = []

    def part(hub, file):
        """The problems in four files, as the hub has them."""
        asked.append(file)
        path = tmp_path / f"{len(asked)}.parquet"
        pq.write_table(pa.Table.from_pylist(SMALL[len(asked) - 1 :: 4]), path)
        return path

    monkeypatch.setattr("qeval.data.datasets._hub_file", part)
    assert load(DataSource()) == load(mbpp_small)
    splits = ("prompt", "test", "validation", "train")
    assert asked == [f"full/{split}-00000-of-00001.parquet" for split in splits]


# The modes


@pytest.fixture
def table(table_lm, problems):
    keys = {task: problem.text for task, problem in problems.items()}
    return lambda answer: table_lm(keys, answer)


@pytest.fixture
def run(run_task, mbpp_small):
    return lambda lm, **options: run_task(Mbpp(), lm, data=mbpp_small, **options)


def test_base_continues_the_docstring_to_the_first_stop(box, run, table, problems):
    for stop in STOPS:
        lm = table(lambda task, s, stop=stop: problems[task].solution + stop + "x(")
        result = run(lm, folder=stop.strip(), limit=2)
        assert result.metrics[0].value == 1.0, stop
        assert lm.prompts[0] == problems["Mbpp/11"].prompt
        [first, _] = read_samples(result.files["samples"], problems)
        assert (first.completion, first.prefix) == (problems["Mbpp/11"].solution, None)
    assert result.metrics[0].protocol == "mbpp/base/greedy/7-problems"


def test_few_shot_is_the_papers_prompt(box, run, table, problems):
    lm = table(lambda task, s: problems[task].solution + "\n[DONE]\n\nYou are")
    result = run(lm, mode="few-shot", limit=1)
    shots = [row for row in SMALL if row["task_id"] in (2, 3, 4)]
    blocks = [
        "You are an expert Python programmer, and here is your task: {} Your code should pass these "
        "tests:\n\n{}\n[BEGIN]\n".format(row["text"], "\n".join(row["test_list"]))
        for row in [*shots, SMALL[3]]
    ]
    solved = [f"{block}{row['code']}\n[DONE]" for block, row in zip(blocks, shots, strict=False)]
    assert lm.prompts == ["\n\n".join([*solved, blocks[3]])]
    assert result.metrics[0].protocol == "mbpp/few-shot/greedy/7-problems"
    assert result.metrics[0].value == 1.0
    [sample] = read_samples(result.files["samples"], problems)
    assert (sample.completion, sample.prefix) == (SMALL[3]["code"] + "\n", "")


def test_few_shot_wants_its_examples(run_task, table, write):
    with pytest.raises(DataError, match="lacks its examples, Mbpp/2, Mbpp/3, Mbpp/4"):
        run_task(Mbpp(), table(None), data=write(ROW), mode="few-shot")


def test_instruct_asks_with_the_tests_and_extracts_the_code(box, run, table, problems):
    def chatty(task, sample):
        code = problems[task].solution if sample == 0 else "def nothing(): pass"
        return f"Sure:\n\n```python\n{code}\n```\n\nIt works."

    lm = table(chatty)
    result = run(lm, chat=True, n_samples=2, temperature=1.0)
    [metric] = result.metrics
    assert metric.protocol == "mbpp/instruct/T1-p0.95-n2/7-problems"
    assert metric.values == (0.5,) * 6 + (0.0,)  # the last cannot pass
    for row in SMALL[3:10]:
        assert any(all(t in p for t in [row["text"], *row["test_list"]]) for p in lm.prompts)
    samples = read_samples(result.files["samples"], problems)
    assert all(s.prefix == "" and "It works." in s.raw for s in samples)


def test_splits_are_those_of_the_task_ids(problems):
    found = {}
    for split in ("prompt", "test", "validation"):
        found[split] = list(Mbpp().chosen(problems, MbppOptions(split=split)))
    assert found == {
        "prompt": ["Mbpp/2", "Mbpp/3", "Mbpp/4"],
        "test": [f"Mbpp/{i}" for i in range(11, 18)],
        "validation": ["Mbpp/511"],
    }
    with pytest.raises(DataError, match="split train: the file has no problem with a task_id from 601"):
        Mbpp().chosen(problems, MbppOptions(split="train"))
    ids = [i for first, last in SPLITS.values() for i in range(first, last + 1)]
    assert ids == list(range(1, 975))


def test_few_shot_does_not_ask_its_own_examples():
    with pytest.raises(ValidationError, match="use another split"):
        MbppOptions(mode="few-shot", split="prompt")


def test_every_option_that_changes_the_number_changes_the_protocol(letters):
    sampled = {"n_samples": 20, "temperature": 0.8}
    variants = [
        ({}, 500),
        ({}, 7),
        ({"mode": "instruct"}, 500),
        ({"split": "validation"}, 90),
        ({"sanitized": True}, 257),
        ({"sanitized": True}, 500),
        ({"max_new_tokens": 100}, 500),
        ({"timeout_s": 10.0}, 500),
        (sampled, 500),
        ({**sampled, "top_p": 0.9}, 500),
    ]
    ids, labels = set(), set()
    for changes, n in variants:
        options = MbppOptions.model_validate(changes)
        name = options.mode or "base"
        mode = Mbpp().mode(name, options, letters(chat=True), {})
        ids.add(Mbpp().protocol(options, name, mode, n_problems=n))
        labels.add(Mbpp().label(options))
    assert len(ids) == len(variants)
    assert {"mbpp/base/greedy", "mbpp-sanitized/base/greedy", "mbpp/base/greedy/validation"} <= ids
    assert {"MBPP greedy", "MBPP sanitized greedy", "MBPP instruct greedy"} <= labels


# The references


def verdicts(found, sandbox, completion=lambda problem: problem.solution):
    programs = [
        Sample(task, completion(problem)).program(problem, task)
        for task, problem in found.items()
        if problem.solution is not None
    ]
    return {v.id: v for v in sandbox.run(programs, Limits(timeout_s=60.0), workers=2)}


def test_the_references_pass_and_nothing_else_does(problems, sandbox):
    assert [task for task, problem in problems.items() if problem.solution is None] == ["Mbpp/17"]
    found = verdicts(problems, sandbox)
    assert {v.text for v in found.values()} == {"passed"} and len(found) == 10
    stubbed = verdicts(problems, sandbox, lambda p: "".join(f"def {n}(*_): pass\n" for n in p.names))
    assert {v.text for v in stubbed.values()} <= {"failed: AssertionError", "failed: TypeError"}


@pytest.mark.parametrize(("name", "count"), [("mbpp", 974), ("mbpp-sanitized", 427)])
def test_all_references_of_the_real_file_pass(sandbox, real_table, name, count):
    """All but three, which hand the code a class of Python (533) or link nodes of its own."""
    found = load(real_table(name), name).problems
    assert len(found) == count
    without = {task for task, problem in found.items() if problem.solution is None}
    assert without <= {"Mbpp/367", "Mbpp/533", "Mbpp/927"}
    assert {v.text for v in verdicts(found, sandbox).values()} == {"passed"}
    for split in SPLITS:
        options = MbppOptions(split=split, sanitized=name != "mbpp")
        chosen = Mbpp().chosen(found, options)
        assert Mbpp().variant(options, len(chosen)) == ([split] if split != "test" else [])
