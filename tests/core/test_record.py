"""Records survive JSON, strictly, and units read well."""

import json
import math
from dataclasses import replace

import pytest

from qeval.core.errors import StoreError, UsageError, did_you_mean
from qeval.core.record import MemoryReport, Metric, Record, check, completed
from qeval.core.units import gib, human_bytes, human_seconds

RECORD = Record(
    "eval",
    "ab",
    {"model": {"id": "m"}},
    "ok",
    (completed(Metric("ppl", 2.0, "p", stderr=0.1, values=(1.0, None), units=("a", "b"))),),
    MemoryReport(weights=5, rank=3),
    notes=("n",),
    timing={"wall_s": 1.0},
)


def test_a_record_survives_json():
    assert Record.from_json(json.loads(json.dumps(RECORD.to_json()))) == RECORD


def test_json_is_strict():
    record = Record("eval", "k", {"x": [math.nan, {"y": math.inf}]}, "ok", timing={"t": -math.inf})
    text = json.dumps(record.to_json(), allow_nan=False)
    assert Record.from_json(json.loads(text)).cell == {"x": [None, {"y": None}]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "not a qeval record"),
        ({"schema_version": 99}, "schema version 99"),
        ({"schema_version": 1}, "not a qeval record"),
        ({**RECORD.to_json(), "metrics": [{"nme": 1}]}, "not a qeval record"),
    ],
)
def test_what_is_no_record(data, message):
    with pytest.raises(StoreError, match=message):
        Record.from_json(data)


def test_a_key_of_a_later_minor_version_is_passed_over():
    assert Record.from_json({**RECORD.to_json(), "new_key": 1}) == RECORD


def test_units():
    assert [gib(x * 2**30) for x in (29.72, 1.234, 0.11)] == ["29.7", "1.23", "0.110"]
    assert [human_bytes(x) for x in (10, 2048, 98 * 2**20, 3 * 2**30)] == [
        "10 B",
        "2.0 KiB",
        "98.0 MiB",
        "3.0 GiB",
    ]
    assert [human_seconds(x) for x in (0.44, 12, 200, 7500)] == [
        "0.4 s",
        "12 s",
        "3 m 20 s",
        "2 h 05 m",
    ]


def test_did_you_mean():
    assert did_you_mean("num_bit", ["num_bits", "x"]) == "; did you mean 'num_bits'?"
    assert did_you_mean("zzz", ["b", "a"]) == "; known: a, b"
    assert did_you_mean("zzz", []) == ""


def test_a_record_of_0_1_0_has_no_log():
    assert (
        Record.from_json(
            {"schema_version": 1, "kind": "eval", "key": "k", "cell": {}, "status": "ok"}
        ).log
        is None
    )


WORDS = ("better", "pairs", "change", "cost", "heading", "group")


def test_a_metric_says_everything_once_it_is_read():
    for unit in ("", "share", "%", "tok/s", "s", "ms", "MiB", "dB", "furlong"):
        for name in ("ppl", "pass@10", "made_up"):
            found = completed(Metric(name, 1.0, "p", unit))
            assert all(getattr(found, word) is not None for word in WORDS)
            assert completed(found) == found


def test_what_a_metric_says_of_itself_is_kept():
    said = Metric(
        "ppl",
        0.5,
        "p",
        "s",
        better="higher",
        pairs="item",
        change="points",
        cost=False,
        heading="right",
        group="answers",
        shown=False,
    )
    assert completed(said) == said
    assert Record.from_json(replace(RECORD, metrics=(said,)).to_json()).metrics == (said,)
    for word in WORDS:
        unsaid = completed(replace(said, **{word: None}))
        assert replace(unsaid, **{word: getattr(said, word)}) == said


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"better": "more"}, "metric 'x': better 'more': give 'lower', 'higher' or 'none'"),
        ({"pairs": "passage"}, "give 'window', 'problem', 'item' or 'none'"),
        ({"change": "log"}, "give 'relative', 'difference', 'points', 'ratio', 'time' or 'none'"),
        (
            {"change": "points", "unit": "marks"},
            "change 'points' of the unit 'marks': give '', 'share' or",
        ),
        ({"values": (1.0,), "units": ("a", "b")}, "2 units for 1 values"),
    ],
)
def test_a_metric_that_no_table_understands_is_refused_in_one_line(said, message):
    with pytest.raises(UsageError, match=message):
        check(Metric("x", 1.0, "p", **said))
    check(Metric("x", 1.0, "p"))
