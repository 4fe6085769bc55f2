"""What every coding task does: samples, resuming, scoring beside the generation, metrics, faults.

The problems are MBPP's kind, a few of our own (mbpp_small.jsonl), so that no package is needed.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from pydantic import ValidationError

from qeval.core.errors import DataError, SandboxError, UsageError
from qeval.data.datasets import DataSource
from qeval.report.compare import difference
from qeval.sandbox.weak import WeakSandbox
from qeval.tasks.coding import task as coding
from qeval.tasks.coding.mbpp import Mbpp
from qeval.tasks.coding.samples import Sample, benchmark, read_samples
from qeval.tasks.coding.task import CodingOptions


@pytest.fixture
def problems(mbpp_small):
    return benchmark("mbpp", mbpp_small).problems


@pytest.fixture
def right(problems):
    return lambda task, sample=0: problems[task].solution + "\nprint(1)"


@pytest.fixture
def every_other(right):
    def answer(task, sample):
        return right(task) if (int(task.split("/")[1]) + sample) % 2 else "x = 1"

    return answer


@pytest.fixture
def table(table_lm, problems):
    keys = {task: problem.text for task, problem in problems.items()}
    return lambda answer, **options: table_lm(keys, answer, **options)


@pytest.fixture
def run(run_task, mbpp_small):
    return lambda lm, *, limit=6, **options: run_task(
        Mbpp(), lm, data=mbpp_small, limit=limit, **options
    )


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited for nothing"
        time.sleep(0.005)


def test_half_right(box, run, table, every_other, problems):
    result = run(table(every_other))
    [metric] = result.metrics
    assert metric.values == (1.0, 0.0, 1.0, 0.0, 1.0, 0.0)
    assert metric.units == tuple(f"Mbpp/{i}" for i in range(11, 17))
    assert (metric.value, metric.stderr) == (0.5, pytest.approx((0.3 / 6) ** 0.5))
    assert result.facts["verdicts"] == {"passed": 3, "failed": 3}
    assert result.facts["verdict_texts"] == {"passed": 3, "failed: NameError": 3}
    assert result.facts["sandbox"] == "weak" and result.facts["sandbox_layers"]
    assert result.facts["problems_sha256"]
    assert [v["passed"] for v in lines(result.files["verdicts"])] == [True, False] * 3
    assert any("WITHOUT a sandbox" in note for note in result.notes)


def test_many_samples_give_the_unbiased_estimates(box, run, table, right):
    lm = table(lambda task, s: right(task) if s == 0 else "pass")
    result = run(lm, limit=2, n_samples=4, k=[1, 2, 4], temperature=0.8)
    assert [m.name for m in result.metrics] == ["pass@1", "pass@2", "pass@4"]
    assert [m.value for m in result.metrics] == pytest.approx([0.25, 0.5, 1.0])
    [(prompts, sampling)] = lm.calls
    assert (prompts, sampling.n, sampling.top_p, sampling.max_new_tokens) == (2, 4, 0.95, 512)


class Watched(WeakSandbox):
    """Keeps what it was given and what it answered; ``on_program`` is called before each is run."""

    def __init__(self, on_program=lambda program: None, seconds=0.0):
        super().__init__()
        self.on_program, self.seconds, self.verdicts = on_program, seconds, []

    def run(self, programs, limits, workers):
        for verdict in super().run(map(self._seen, programs), limits, workers):
            time.sleep(self.seconds)
            self.verdicts.append(verdict)
            yield verdict

    def _seen(self, program):
        self.on_program(program)
        return program


@pytest.fixture
def watch(monkeypatch):
    def watch(**options):
        found = Watched(**options)
        monkeypatch.setattr(coding, "find_sandbox", lambda weak: found)
        return found

    return watch


def test_a_sample_is_on_disk_before_it_is_executed(watch, run, table, problems, tmp_path):
    references = {Sample(t, p.solution or "").program(p, "").code for t, p in problems.items()}
    executed = []

    def on_program(program):
        if program.code not in references:
            saved = [line["completion"] for line in lines(tmp_path / "cell" / "samples.jsonl")]
            executed.append(program.code)
            assert any(completion in program.code for completion in saved)

    watch(on_program=on_program)
    result = run(table(lambda task, s: f"answer = {task[5:]}"))
    assert result.metrics[0].value == 0.0 and len(executed) == 6


def test_programs_run_while_the_model_generates(watch, run, table, right):
    sandbox = watch()

    def answer(task, sample):
        if task == "Mbpp/16":  # the last: its model waits for the verdicts of all before it
            wait_for(lambda: len(sandbox.verdicts) >= 10)  # and of their references
        return "pass" if task == "Mbpp/16" else right(task) + "#"

    assert run(table(answer)).metrics[0].values == (1.0,) * 5 + (0.0,)


def test_the_time_that_scoring_takes_after_the_last_completion_is_a_fact(watch, run, table, right):
    watch(seconds=0.1)
    assert run(table(right), limit=2).facts["scoring_s_after_generation"] >= 0.1


def test_a_sandbox_that_breaks_ends_the_generation_and_keeps_the_samples(watch, run, table, tmp_path):
    broken = threading.Event()

    def on_program(program):
        broken.set()
        raise SandboxError("it broke")

    watch(on_program=on_program)
    asked = []

    def answer(task, sample):
        asked.append(task)
        if len(asked) > 1:
            broken.wait(20)
            time.sleep(0.05)
        return "pass"

    with pytest.raises(SandboxError, match="it broke"):
        run(table(answer))
    assert 1 < len(asked) < 6
    assert len(lines(tmp_path / "cell" / "samples.jsonl")) in (len(asked), len(asked) - 1)


def test_without_a_sandbox_nothing_is_generated(run, table, right, monkeypatch):
    def none(weak):
        raise SandboxError("no sandbox")

    monkeypatch.setattr(coding, "find_sandbox", none)
    lm = table(right)
    with pytest.raises(SandboxError):
        run(lm)
    assert lm.calls == []


def test_a_killed_run_goes_on_where_it_was(box, run, table, every_other, problems, tmp_path):
    options = {"n_samples": 3, "temperature": 0.5, "k": [1, 3]}
    child = os.fork()
    if child == 0:
        run(table(every_other, dies_after=7), **options)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    path = tmp_path / "cell" / "samples.jsonl"
    with path.open("a") as file:
        file.write('{"task_id": "Mbpp/12", "compl')
    before = [Sample(**json.loads(line)) for line in path.read_text().splitlines()[:-1]]
    assert len(before) == 7

    lm = table(every_other)
    result = run(lm, **options)
    assert sum(prompts * sampling.n for prompts, sampling in lm.calls) == 6 * 3 - 7
    assert {sampling.seed for _, sampling in lm.calls} == {0}  # a sample's text hangs on its number
    after = read_samples(path, problems)
    assert after[:7] == before
    pairs = sorted((f"Mbpp/{t}", i) for t in range(11, 17) for i in range(3))
    assert sorted((s.task_id, s.sample) for s in after) == pairs
    assert sorted((v["task_id"], v["sample"]) for v in lines(result.files["verdicts"])) == pairs
    unbroken = run(table(every_other), folder="other", **options)
    assert [m.values for m in unbroken.metrics] == [m.values for m in result.metrics]
    whole = read_samples(tmp_path / "other" / "samples.jsonl", problems)
    assert sorted(after, key=_place) == sorted(whole, key=_place)

    again = table(every_other)
    assert run(again, **options).metrics == result.metrics
    assert again.calls == []


def _place(sample):
    return sample.task_id, sample.sample


def test_logits_that_are_not_finite_break_the_cell(box, run, table, every_other):
    """One sample of twelve: as with perplexity there is no value, and so no interval, no difference."""

    class Broken(type(table(every_other))):
        def _complete(self, p, s, ids, sampling, stop):
            done = super()._complete(p, s, ids, sampling, stop)
            return replace(done, ids=[], finish="nonfinite") if (p, s) == (2, 1) else done

    [metric] = run(Broken(table(every_other).keys, every_other), n_samples=2, temperature=1.0).metrics
    assert (metric.value, metric.low, metric.high, metric.stderr) == (None, None, None, None)
    assert metric.nonfinite == pytest.approx(1 / 12)
    assert [v is None for v in metric.values] == [False, False, True, False, False, False]
    whole = run(table(every_other), n_samples=2, temperature=1.0, folder="other").metrics[0]
    assert difference(metric, whole) is None and difference(whole, metric) is None
    assert difference(metric, metric) is None  # never "identical"


def test_verdicts_do_not_depend_on_the_order_of_the_completions(box, run, table, every_other):
    class Backwards(type(table(every_other))):
        def generate(self, prompts, sampling, stop=None):
            return reversed(list(super().generate(prompts, sampling, stop)))

    lm = table(every_other)
    forwards = run(lm, n_samples=2, temperature=1.0)
    backwards = run(Backwards(lm.keys, every_other), n_samples=2, temperature=1.0, folder="other")
    assert forwards.metrics == backwards.metrics
    first, second = (lines(result.files["samples"]) for result in (forwards, backwards))
    assert first == second[::-1] and first != second


def test_length_ends_are_counted_in_a_note(box, run, table, problems):
    result = run(table(lambda task, s: "x = 1\n" * 99), max_new_tokens=30, limit=2)
    assert "2 of 2 completions ended by length (max_new_tokens 30)" in result.notes
    assert result.metrics[0].protocol == "mbpp/base/greedy/7-problems/max30"
    assert result.context == max(len(problems[t].prompt) for t in ("Mbpp/11", "Mbpp/12")) + 30


def test_prompts_longer_than_the_context_fail_and_are_told(box, run, table, right, problems):
    lm = table(right)
    short, long = sorted(len(problems[t].prompt) for t in ("Mbpp/11", "Mbpp/12"))
    lm.max_seq_len = short + 1
    assert short + 1 <= long
    result = run(lm, limit=2)
    assert sorted(result.metrics[0].values) == [0.0, 1.0]
    assert "1 of 2 samples failed: prompt longer than the model's context" in result.notes


def test_a_chat_mode_needs_a_chat_template(box, run, table, right):
    with pytest.raises(UsageError, match="mbpp mode: instruct needs a chat template"):
        run(table(right), mode="instruct")


BAD_OPTIONS = {
    "k over n": ({"k": [10]}, "k: 10 needs n_samples: 10 or more"),
    "no k": ({"k": []}, "at least 1"),
    "k of zero": ({"k": [0]}, "give 1 or more"),
    "greedy samples": ({"n_samples": 2}, "temperature over 0"),
    "greedy top_p": ({"top_p": 0.9}, "no effect at temperature 0"),
    "unknown": ({"samples": 3}, "Extra inputs"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_impossible_options(name):
    options, message = BAD_OPTIONS[name]
    with pytest.raises(ValidationError, match=message):
        CodingOptions.model_validate(options)


def test_preflight_wants_the_problems_and_a_sandbox(mbpp_small, monkeypatch, tmp_path):
    options = Mbpp.Options()
    asked = []
    monkeypatch.setattr(coding, "find_sandbox", lambda weak: asked.append(weak))
    Mbpp().preflight(options, mbpp_small, weak_sandbox=True)
    assert asked == [True]
    with pytest.raises(DataError, match=r"'mbpp' not found.*mbpp/mbpp\.jsonl"):
        Mbpp().preflight(options, DataSource(tmp_path, offline=True), weak_sandbox=True)


def test_the_modules_import_nothing_heavy():
    code = (
        "import sys, qeval.tasks.coding.humaneval, qeval.tasks.coding.mbpp, qeval.tasks.coding.grader\n"
        "heavy = {'torch', 'transformers', 'llama_cpp', 'datasets', 'scipy', 'numpy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
