"""Results of other programs beside qeval's: read as they are, paired, and named as from outside.

lm_eval_0_4_13/ is what lm-eval 0.4.13 wrote (its ``pretty_env_info`` taken out) for a task of 16
lines of one's own::

    python -m lm_eval --model hf --model_args pretrained=stories260k,dtype=bfloat16 --tasks
        stories_happy --include_path . --device cpu --batch_size 8 --log_samples --output_path out
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from made_records import pass_at_1, ppl, record

import qeval
from qeval.core.errors import DataError, StoreError
from qeval.core.record import Metric
from qeval.outside import lm_eval

REAL = Path(__file__).parent / "lm_eval_0_4_13"
ACC = "acc lm-eval/stories_happy 0-shot"


@pytest.fixture
def theirs(tmp_path):
    """lm-eval's own files, and a copy in which two answers went the other way."""
    shutil.copytree(REAL, tmp_path / "float" / "m")
    shutil.copytree(REAL, tmp_path / "quantized" / "m4")
    (results,) = (tmp_path / "quantized" / "m4").glob("results_*")
    (samples,) = (tmp_path / "quantized" / "m4").glob("samples_*")
    data, lines = json.loads(results.read_text()), samples.read_text().splitlines()
    docs = [json.loads(line) for line in lines]
    wrong, right = (next(d for d in docs if d["acc"] == x) for x in (0.0, 1.0))
    other = next(d for d in docs if d["acc"] == 1.0 and d is not right)
    wrong["acc"], right["acc"], other["acc"] = 1.0, 0.0, 0.0
    data["results"]["stories_happy"]["acc,none"] -= 1 / len(docs)
    data["model_name"] = "stories260k-4bit"
    results.write_text(json.dumps(data))
    samples.write_text("".join(json.dumps(d) + "\n" for d in docs))
    return tmp_path / "float", tmp_path / "quantized", (wrong, right, other)


def test_lm_evals_results_are_rows_with_their_own_conditions():
    table = qeval.load(REAL).table()
    (row,) = table.rows
    assert (row.model, row.dtype) == ("from outside", "bfloat16")
    assert row.quantization == "stories260k (lm-eval)"
    data = json.loads(next(REAL.glob("results_*")).read_text())["results"]["stories_happy"]
    entry = row.entries[ACC]
    assert entry.value == data["acc,none"] and entry.low < entry.value < entry.high
    assert row.entries["acc_norm lm-eval/stories_happy 0-shot"].value == data["acc_norm,none"]
    (note,) = table.footnotes
    for said in ("from outside (results_", "lm-eval 0.4.13, transformers 5", "on cpu", "batch_size 8"):
        assert said in note
    (record,) = qeval.load(REAL).records
    by_name = {m.name: m for m in record.metrics}
    assert by_name["acc"].stderr == data["acc_stderr,none"] and by_name["acc"].n == 16
    assert record.conditions.device == "cpu" and record.conditions.batch_size == 8


def test_two_of_lm_evals_pair_document_by_document(theirs):
    before, after, (wrong, right, other) = theirs
    results = qeval.load(before, after)
    change = results.table(baseline="stories260k (lm-eval)").rows[1].entries[ACC].difference
    assert change.kind == "points" and change.value == pytest.approx(-1 / 16)
    assert change.p == 1.0  # two lost and one gained: McNemar
    (flips,) = results.compare("stories260k (lm-eval)", "stories260k-4bit (lm-eval)").rows[0].flips
    names = {f"{d['doc_id']}:{d['doc_hash'][:8]}" for d in (right, other)}
    assert {f.unit for f in flips.lost} == names and len(flips.gained) == 1
    assert flips.gained[0].unit.startswith(f"{wrong['doc_id']}:")
    assert flips.lost[0].a.completion  # what lm-eval kept of the answer


def test_samples_of_other_documents_do_not_pair(theirs):
    before, after, _ = theirs
    (samples,) = after.rglob("samples_*")
    docs = [json.loads(line) for line in samples.read_text().splitlines()]
    docs[3]["doc_hash"] = "0" * 64
    samples.write_text("".join(json.dumps(d) + "\n" for d in docs))
    table = qeval.load(before, after).table(baseline="stories260k (lm-eval)")
    assert table.rows[1].entries[ACC].difference is None
    assert any("other items than the baseline's" in note for note in table.footnotes)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n-shot", [1]),
        ("n-samples", {"stories_happy": 3}),
        ("higher_is_better", "acc"),
        ("config", {"model": "qeval"}),
        ("configs", {"stories_happy": {"metadata": 5}}),
        ("versions", 3),
        ("groups", ["stories_happy"]),
        ("date", "yesterday"),
    ],
)
def test_a_damaged_file_is_read_or_named_and_never_a_traceback(theirs, key, value):
    before, _, _ = theirs
    (results,) = before.rglob("results_*")
    results.write_text(json.dumps({**json.loads(results.read_text()), key: value}))
    try:
        assert len(qeval.load(before).table().rows) == 1
    except DataError as err:
        assert results.name in str(err)


def test_a_metric_that_is_no_mean_of_its_documents_has_no_test(theirs):
    before, _, _ = theirs
    (results,) = before.rglob("results_*")
    data = json.loads(results.read_text())
    data["results"]["stories_happy"]["acc,none"] = 0.123
    results.write_text(json.dumps(data))
    (record,) = qeval.load(before).records
    (acc,) = (m for m in record.metrics if m.name == "acc")
    assert acc.value == 0.123 and acc.values == () and acc.pairs == "none"


def test_outside_rows_join_the_one_model_there_is_or_the_one_of_their_name(keep, theirs):
    before, _, _ = theirs
    ours = record("none", "perplexity", [ppl([3.0, 3.1, 3.2])])
    both = qeval.load(keep([ours]), before).table()
    assert [r.model for r in both.rows] == ["org/model", "org/model"]
    assert [r.baseline for r in both.rows] == [True, False]
    same = record("none", "perplexity", [ppl([3.0, 3.1, 3.2])], model="stories260k")
    several = qeval.load(keep([ours, same], "several"), before).table()
    assert {r.model for r in several.rows if "lm-eval" in r.quantization} == {"stories260k"}


def test_lambada_openai_shares_the_column_of_qevals_lambada(keep, tmp_path):
    values = [1.0, 0.0, 1.0, 1.0]
    metric = Metric(
        "acc",
        0.75,
        "lambada/openai",
        unit="share",
        n=4,
        values=tuple(values),
        units=("0", "1", "2", "3"),
        better="higher",
        pairs="item",
        change="points",
    )
    nll = [1.0, 2.0, 0.5, 0.1]
    mine = Metric(
        "ppl",
        2.718281828**0.9,
        "lambada/openai",
        n=4,
        values=tuple(nll),
        units=("0", "1", "2", "3"),
        better="lower",
        pairs="item",
        change="relative",
        heading="PPL",
    )
    folder = tmp_path / "lm"
    folder.mkdir()
    results = {"acc,none": 0.75, "perplexity,none": 2.718281828**0.9, "acc_stderr,none": "N/A"}
    data = {
        "results": {"lambada_openai": results},
        "n-shot": {"lambada_openai": 0},
        "higher_is_better": {"lambada_openai": {"acc": True, "perplexity": False}},
        "model_name": "x",
        "config": {"model": "hf"},
    }
    (folder / "results_1.json").write_text(json.dumps(data))
    lines = [
        {"doc_id": i, "doc_hash": str(i), "filter": "none", "acc": a, "perplexity": -n}
        for i, (a, n) in enumerate(zip(values, nll, strict=True))
    ]
    (folder / "samples_lambada_openai_1.jsonl").write_text("\n".join(map(json.dumps, lines)))
    ours = keep([record("none", "perplexity", [metric, mine])])
    table = qeval.load(ours, folder).table()
    for name in ("acc lambada/openai", "ppl lambada/openai"):
        assert table.rows[1].entries[name].difference.value == pytest.approx(0.0)


def human_eval(path, passed, **more):
    lines = [
        {
            "task_id": f"HumanEval/{i}",
            "completion": f"# {i}",
            "passed": ok,
            "result": "passed" if ok else "failed: AssertionError",
            **more,
        }
        for i, oks in enumerate(passed)
        for ok in oks
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_human_evals_samples_are_rows_that_pair_with_each_other(keep, tmp_path):
    a = human_eval(tmp_path / "float.jsonl_results.jsonl", [[True], [True], [False], [True]])
    b = human_eval(tmp_path / "int4.jsonl_results.jsonl", [[True], [False], [False], [False]])
    results = qeval.load(a, b)
    table = results.table(baseline="float (samples)")
    entry = table.rows[1].entries["pass@1 humaneval/outside"]
    assert entry.value == 0.25 and entry.difference.value == -0.5 and entry.difference.p == 0.5
    assert all("from outside" in note for note in table.footnotes[:1])
    (flips,) = results.compare("float (samples)", "int4 (samples)").rows[0].flips
    assert [(f.unit, f.b.verdict) for f in flips.lost] == [
        ("HumanEval/1", "failed: AssertionError"),
        ("HumanEval/3", "failed: AssertionError"),
    ]
    ours = record("none", "humaneval", [pass_at_1([1.0, 0.0, 1.0, 1.0])])
    beside = qeval.load(keep([ours]), a).table()  # another protocol: a column of its own
    assert beside.rows[1].entries["pass@1 humaneval/base/greedy"].value is None
    assert beside.rows[1].entries["pass@1 humaneval/outside"].difference is None


def test_several_samples_a_problem_give_the_unbiased_estimate(tmp_path):
    path = human_eval(tmp_path / "x_results.jsonl", [[True] * 5 + [False] * 5, [False] * 10])
    (found,) = qeval.load(path).records
    assert {m.name: m.value for m in found.metrics} == {"pass@1": 0.25, "pass@10": 0.5}


def test_samples_that_nobody_judged_say_how(tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_text('{"task_id": "HumanEval/0", "completion": "x"}\n')
    with pytest.raises(DataError, match=r"samples without verdicts: run `qeval score .*s.jsonl` first"):
        qeval.load(path)
    verdict = {"task_id": "HumanEval/0", "sample": 0, "passed": True, "verdict": "passed"}
    (tmp_path / "s.verdicts.jsonl").write_text(json.dumps(verdict) + "\n")
    (found,) = qeval.load(path).records
    assert found.metrics[0].value == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"results": 3}',
        '{"results": {}}',
        "nonsense",
        '{"results": {"a": {"alias": "a"}, "b": 3}}',
    ],
)
def test_a_file_that_is_no_result_is_an_error_that_names_it(tmp_path, text):
    path = tmp_path / "results_x.json"
    path.write_text(text)
    if text == '{"results": {"a": {"alias": "a"}, "b": 3}}':
        (found,) = lm_eval.read(path)
        assert found.metrics == ()
        return
    with pytest.raises(DataError, match=r"results_x\.json"):
        qeval.load(path)
    with pytest.raises(StoreError, match="does not exist"):
        qeval.load(tmp_path / "nothing.json")
