"""`qeval compare`: paired numbers, what else differs, and problems that changed sides."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_records import BOX, pass_at_1, ppl, record

import qeval
from qeval.cli.main import cli
from qeval.comparison.compare import compare_sides, compare_within
from qeval.core.errors import UsageError
from qeval.core.record import Metric
from qeval.report.rows import build_table

WINDOWS = [3.0, 3.2, 2.8, 3.1, 2.9, 3.3]
PASSED = [1.0, 0.0] * 10
CHANGED = [0.0, 1.0, 0.0, *PASSED[3:]]  # 0 and 2 lost, 1 gained
speeds = st.floats(1, 1000)


def speed(value, **fields):
    metric = Metric("decode_tok_s", value, "speed/b1", "tok/s", low=value, high=value, n=3)
    return record(task="speed", metrics=[metric], **fields)


def two_rows():
    worse = [w + 0.1 + 0.001 * i for i, w in enumerate(WINDOWS)]
    return [
        record("none", "perplexity", [ppl(WINDOWS)], provenance={"packages": {"torch": "2.1"}}),
        record("none", "humaneval", [pass_at_1(PASSED)], limit=20),
        record("Q8_0", "perplexity", [ppl(worse)], provenance={"packages": {"torch": "2.2"}}),
        record("Q8_0", "humaneval", [pass_at_1(CHANGED)], limit=20),
    ]


def by_name(pair):
    return {one.column.name: one for one in pair.metrics}


def test_differences_are_those_of_the_table():
    (pair,) = compare_within(two_rows(), "none", "q8_0").rows
    row = build_table(two_rows()).rows[1]
    for one in pair.metrics:
        if one.column.kind == "metric":
            assert one.difference == row.entries[one.column.id].difference
            assert (one.b.value, one.b.low) == (
                row.entries[one.column.id].value,
                row.entries[one.column.id].low,
            )
    assert by_name(pair)["size"].difference.value == pytest.approx(1.3125 / 2.25)


def test_the_other_way_round_is_the_mirror_image():
    (there,), (back,) = (
        compare_within(two_rows(), *names).rows for names in (("none", "gguf"), ("gguf", "none"))
    )
    one, other = by_name(there)["pass@1"].difference, by_name(back)["pass@1"].difference
    assert one.value == -other.value and one.low == pytest.approx(-other.high) and one.p == other.p
    assert [f.unit for f in there.flips[0].lost] == [f.unit for f in back.flips[0].gained]
    swapped = [(d.kind, d.what, d.b, d.a) for d in back.conditions]
    assert swapped == [(d.kind, d.what, d.a, d.b) for d in there.conditions]


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=20)
@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=12))
def test_results_against_themselves_differ_in_nothing(passed):
    records = [record("none", "humaneval", [pass_at_1(passed)]), *two_rows()[2:]]
    found = compare_sides(records, records, "x", "y")
    assert len(found.rows) == 2 and not found.only_a and not found.only_b
    for pair in found.rows:
        assert pair.conditions == () and not any(flips.flips for flips in pair.flips)
        for one in pair.metrics:
            ratio = one.difference.kind in ("ratio", "time")
            assert one.difference.value == (1.0 if ratio else 0.0)


def test_what_differs_is_named_with_its_kind():
    (pair,) = compare_within(two_rows(), "none", "Q8_0").rows
    found = {(d.kind, d.what): (d.a, d.b) for d in pair.conditions}
    assert found == {
        ("settings", "engine"): ("hf", "llamacpp"),
        ("settings", "method"): ("none", "gguf"),
        ("settings", "type"): ("–", "Q8_0"),
        ("versions", "torch"): ("2.1", "2.2"),
    }


@given(speeds, speeds)
def test_costs_of_two_places_have_no_ratio_and_say_where_they_are_from(x, y):
    other = replace(BOX, host="laptop", device_name="another CPU")
    found = compare_sides([speed(x)], [speed(y, conditions=other)], "a", "b")
    one = by_name(found.rows[0])["decode_tok_s"]
    assert one.difference is None and (one.a.value, one.b.value) == (x, y)
    assert one.reason.startswith("no ratio: measured on box, 4 threads of a CPU and on laptop")
    assert {d.what for d in found.rows[0].conditions} == {"host", "device name"}
    same = by_name(compare_sides([speed(x)], [speed(y)], "a", "b").rows[0])["decode_tok_s"]
    assert same.difference.value == y / x


def test_holms_correction_is_over_the_rows_that_are_compared():
    windows = [[w + 0.01 * (i % 3) + s for i, w in enumerate(WINDOWS)] for s in (0.0, 0.02)]
    before = [record(q, "perplexity", [ppl(WINDOWS)]) for q in ("none", "Q8_0")]
    after = [record(q, "perplexity", [ppl(w)]) for q, w in zip(("none", "Q8_0"), windows, strict=True)]
    found = [by_name(p)["ppl"].difference for p in compare_sides(before, after, "a", "b").rows]
    assert min(d.adjusted for d in found) == pytest.approx(2 * min(d.p for d in found))


def test_units_that_are_others_give_the_reason_and_no_difference():
    others = Metric(
        "pass@1",
        0.5,
        "humaneval/base/greedy",
        n=20,
        values=tuple(PASSED),
        units=tuple(f"x/{i}" for i in range(20)),
    )
    ours = [record("none", "humaneval", [pass_at_1(PASSED)])]
    found = compare_sides(ours, [record("none", "humaneval", [others])], "a", "b").rows[0]
    assert by_name(found)["pass@1"].reason == "other problems than A's" and found.flips == ()


def test_a_changed_model_is_still_compared_and_named():
    ours = [record("none", "perplexity", [ppl(WINDOWS)])]
    theirs = [record("none", "perplexity", [ppl(WINDOWS)], model="org/tuned")]
    (pair,) = compare_sides(ours, theirs, "a", "b").rows
    assert by_name(pair)["ppl"].difference.value == 0.0
    assert {d.what for d in pair.conditions} == {"model", "model content"}
    more = [*theirs, record("Q8_0", "perplexity", [ppl(WINDOWS)], model="org/third")]
    with pytest.raises(UsageError, match="no row in common"):
        compare_sides(ours, more, "a", "b")


def test_versions_and_commits_are_those_that_measured():
    def by(version, commit, value):
        made = {"qeval": version, "git_commit": commit}
        windows = [w + value for w in WINDOWS]
        return record("none", "perplexity", [ppl(windows)], provenance=made, timing={"end": value})

    records = [by("0.1.0", "abcdef1" + "0" * 33, 0.0), by("0.2.0", "abcdef2" + "0" * 33, 0.5)]
    found = compare_within(records, "0.1.0", "abcdef2")
    assert by_name(found.rows[0])["ppl"].difference.value == pytest.approx(2.718281828**0.5 - 1)
    assert (found.a, found.b) == ("qeval 0.1.0", "qeval abcdef2")
    assert ("versions", "qeval", "0.1.0", "0.2.0") in {
        (d.kind, d.what, d.a, d.b) for d in found.rows[0].conditions
    }
    with pytest.raises(UsageError, match=r"no record is of qeval 0.3.0: .* by 0.1.0, 0.2.0, abcdef1"):
        compare_within(records, "0.1.0", "0.3.0")
    with pytest.raises(UsageError, match="no row is called 'nine'"):
        compare_within(records, "none", "nine")


def write_samples(folder, name, passed):
    (folder / name).mkdir(parents=True)
    samples, verdicts = [], []
    for i, share in enumerate(passed):
        for n in range(2):
            ok = n < 2 * share
            head = {"task_id": f"HumanEval/{i}", "sample": n}
            samples.append({**head, "completion": f"    return {name!r}, {i}, {ok}\n"})
            verdicts.append({**head, "verdict": "passed" if ok else "timeout", "passed": ok})
    for kind, lines in (("samples", samples), ("verdicts", verdicts)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / name / f"{kind}.jsonl").write_text(text)
    return {kind: f"{name}/{kind}.jsonl" for kind in ("samples", "verdicts")}


def test_flips_show_a_completion_of_each_row_that_says_why(keep, tmp_path, capsys):
    folder = tmp_path / "results"
    ours, theirs = [1.0, 0.0, 0.5, 1.0], [0.0, 1.0, 1.0, 1.0]
    records = [
        record(name, "humaneval", [pass_at_1(shares)], files=write_samples(folder, name, shares))
        for name, shares in (("none", ours), ("Q8_0", theirs))
    ]
    results = qeval.load(keep(records))
    comparison = results.compare("none", "Q8_0")
    (flips,) = comparison.rows[0].flips
    assert [(f.unit, f.direction) for f in flips.flips] == [
        ("HumanEval/0", "lost"),
        ("HumanEval/1", "gained"),
        ("HumanEval/2", "gained"),
    ]
    assert flips.p is None  # not every problem passed or failed: half is a share
    lost, gained, half = flips.flips
    assert (lost.a.verdict, lost.b.verdict) == ("passed", "timeout")
    assert lost.b.completion == "    return 'Q8_0', 0, False\n"
    assert (gained.a.verdict, gained.b.verdict) == ("timeout", "passed")
    assert (half.a.verdict, half.a.sample, half.b.verdict) == ("timeout", 1, "passed")
    cli(["compare", "none", "Q8_0", str(folder), "--flips", "1"], standalone_mode=False)
    said = capsys.readouterr().out
    assert "1 lost, 2 gained of 4" in said and "HumanEval/2 (50% -> 100%)" in said
    assert said.count("    | ") == 2 and "      |     return 'none', 0, True" in said
    cli(["compare", "none", "Q8_0", str(folder), "--format", "json"], standalone_mode=False)
    out = capsys.readouterr().out
    assert out == comparison.to_json()
    found = json.loads(out)["rows"][0]["flips"][0]["flips"]
    assert [f["b"]["completion"] for f in found] == [f.b.completion for f in flips.flips]
    (folder / "Q8_0" / "samples.jsonl").write_text("torn {")
    (flips,) = qeval.load(folder).compare("none", "Q8_0").rows[0].flips
    assert flips.flips[0].a is not None and flips.flips[0].b is None
    assert "B: not kept" in str(qeval.load(folder).compare("none", "Q8_0"))


def test_two_folders_on_the_command_line(keep, capsys):
    before = keep(two_rows(), "before")
    after = keep([*two_rows()[2:], record("RTN W4", "perplexity", [ppl(WINDOWS)])], "after")
    cli(["compare", str(before), str(after)], standalone_mode=False)
    said = capsys.readouterr().out
    assert "org/model · Q8_0" in said and "identical" in said
    assert "rows of A alone: org/model · none\nrows of B alone: org/model · RTN W4\n" in said
    assert "<pre>" in qeval.load(before).compare(qeval.load(after))._repr_html_()
    with pytest.raises(UsageError, match="nowhere is no results folder"):
        cli(["compare", "nowhere", str(after)], standalone_mode=False)
