"""`qeval show`: everything of one record, and finding it by the start of its key."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qeval.core.errors import UsageError
from qeval.core.record import Conditions, MemoryReport, Metric, Record
from qeval.report.describe import describe, pick

RECORD = Record(
    kind="eval",
    key="abc123",
    cell={
        "model": {"id": "org/m", "identity": "sha256:ff", "dtype": "bfloat16"},
        "quantization": {"name": "gguf", "label": "Q8_0", "options": {"type": "Q8_0"}},
        "limit": None,
    },
    status="ok",
    metrics=(
        Metric("ppl", 21.6178, "gptq/wikitext2", stderr=0.155, n=148),
        Metric("pass@1", None, "humaneval/base", low=0.1, high=0.2, n=164, nonfinite=0.25),
    ),
    memory=MemoryReport(weights=2**29, context=2048),
    artifact={"bpw": 8.5},
    notes=("tokenizer drift",),
    files={"samples": "cells/abc/samples.jsonl"},
    timing={"start": 1700000000.0, "end": None, "run_s": 75.0},
    conditions=Conditions("laptop", "cpu", n_threads=2, engine_version="torch 2.13.0", others=0.0),
    provenance={"git": {"commit": "0a1b", "dirty": False}},
)


def test_describe():
    assert (
        describe(RECORD)
        == """\
key           abc123
kind          eval
status        ok
model         org/m (sha256:ff, bfloat16)
quantization  Q8_0 (gguf, type=Q8_0)

metrics
  ppl = 21.6178 ± 0.306 (95%), standard error 0.155, n = 148, gptq/wikitext2
  pass@1 = not finite, interval [0.1, 0.2], n = 164, humaneval/base, 25% not finite

memory
  weights         512.0 MiB
  context         2,048 tokens

artifact
  bpw  8.5

notes
  tokenizer drift

conditions
  host            laptop
  device          cpu
  n_threads       2
  engine_version  torch 2.13.0
  others          0.0

timing
  start  2023-11-14 22:13:20 UTC
  end    unknown
  run_s  1 m 15 s

files
  samples  cells/abc/samples.jsonl

provenance
  git  {"commit": "0a1b", "dirty": false}
"""
    )


def test_the_whole_error_is_shown():
    text = describe(Record("eval", "k", {}, "failed", error="first line\nlast words of the worker"))
    assert "error   first line\n    last words of the worker\n" in text


def test_pick_finds_the_newest_by_the_start_of_its_key():
    newer = replace(RECORD, notes=("newer",))
    assert pick([RECORD, newer, replace(RECORD, key="zz")], "abc") == [newer]


def test_the_same_cell_of_another_folder_is_named(record=RECORD):
    """Whatever order the folders are given in, the newest comes first."""
    old = replace(record, folder="a", timing={"end": 1700000000.0})
    new = replace(record, folder="b", timing={"end": 1700000060.0}, metrics=record.metrics[:1])
    for given in ([old, new], [new, old]):
        assert [r.folder for r in pick(given, "abc")] == ["b", "a"]
    assert "in other folders\n  a (2023-11-14 22:13:20 UTC): ppl = 21.6178 ± 0.306 (95%)" in (
        describe(*pick([old, new], "abc"))
    )
    copy = replace(old, folder="c")
    assert len(pick([old, copy], "abc")) == 1


def test_a_number_without_conditions_says_so():
    assert "conditions\n  unknown\n" in describe(replace(RECORD, conditions=None))


def test_pick_says_what_is_wrong():
    records = [replace(RECORD, key=f"abc{i}") for i in range(6)]
    with pytest.raises(
        UsageError, match=r"6 cells' keys start with 'abc' \(abc0, .*, \.\.\.\): give more"
    ):
        pick(records, "abc")
    with pytest.raises(UsageError, match="no cell's key starts with 'q'"):
        pick(records, "q")
