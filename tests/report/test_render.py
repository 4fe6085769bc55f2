"""Exact output. Goldens: `small` of conftest.py through this module's calls, read by eye."""

# ruff: noqa: E501  (a table is as wide as it is)

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace

import pytest

from qeval.core.errors import UsageError
from qeval.core.record import MemoryReport, Metric
from qeval.report.compare import Difference
from qeval.report.format import difference_text, value_text
from qeval.report.render import FORMATS, render
from qeval.report.rows import build_table
from qeval.report.table import Column, Entry

GIB = 2**30
TEXT = """\
org/model, bfloat16

quantization      bpw   weights GiB   RAM GiB   PPL                               pass@1                     decode tok/s
                                                gptq/wikitext2                    humaneval/base/greedy      speed/b1
                                                                                  [first 20]
─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
none            16.00          2.25      3.00   21.12 ± 3.98                      50.0% [40.0, 60.0]         20.00 [19.00, 21.00]
Q8_0 ¹           8.50          1.31      3.00   21.12 ± 3.97 ²                    50.0% [40.0, 60.0]         30.00 [29.00, 31.00]
                                                +0.000% [-0.076, +0.076] equiv.   identical                  ×1.50
Q5_K_M ¹         5.70         0.962         –   23.39 ± 4.44 ²                    10.0% [0.0, 20.0]          timeout ³
                                                +10.79% [+10.45, +11.14]          -40.0 pts [-58.4, -14.4]
RTN W4 †       4.25 †       0.781 †         –   broken (50% not finite)           …                          –

¹ runs on llamacpp, the baseline on hf
² tokenizer drift: 2 tokens differ
³ timeout: no result after 60 s

±: 95% interval by Student's t; of windows as of a correlated series, in blocks as long as the text needs
pass@k [low, high]: 95% interval
second line: difference from the baseline (none), paired unit by unit, with its 95% interval; pts: percentage points
× of a speed: ratio to the baseline (none), not tested
equiv.: the same as the baseline within 1% or 1 pts, by two one-sided tests at 5%
a true difference of this size would have been seen in four runs of five (median of the rows): PPL gptq/wikitext2 0.26%; pass@1 humaneval/base/greedy 38 pts
†: simulated, float weights that carry the rounding: bpw and weights are what packed storage would take; peak memory and speed of a packed model were not measured (–)
[first N]: only the first N units (windows, problems) were measured
…: not run yet
bpw: bits per weight of the quantized linears, scales and every other overhead counted
weights: stored size, scales, embeddings and head included
RAM: peak resident set of the row's own process, during the task speed
speed or time [low, high]: lowest and highest of the repeats
speed, time and peak memory: measured on box, 4 threads of a CPU
"""
MARKDOWN = """\
**org/model, bfloat16**

| quantization | bpw | weights GiB | RAM GiB | PPL<br>gptq/wikitext2 | pass@1<br>humaneval/base/greedy<br>[first 20] | decode tok/s<br>speed/b1 |
|---|---:|---:|---:|---|---|---|
| none | 16.00 | 2.25 | 3.00 | 21.12 ± 3.98 | 50.0% [40.0, 60.0] | 20.00 [19.00, 21.00] |
| Q8_0 ¹ | 8.50 | 1.31 | 3.00 | 21.12 ± 3.97 ²<br>+0.000% [-0.076, +0.076] equiv. | 50.0% [40.0, 60.0]<br>identical | 30.00 [29.00, 31.00]<br>×1.50 |
| Q5_K_M ¹ | 5.70 | 0.962 | – | 23.39 ± 4.44 ²<br>+10.79% [+10.45, +11.14] | 10.0% [0.0, 20.0]<br>-40.0 pts [-58.4, -14.4] | timeout ³ |
| RTN W4 † | 4.25 † | 0.781 † | – | broken (50% not finite) | … | – |

- ¹ runs on llamacpp, the baseline on hf
- ² tokenizer drift: 2 tokens differ
- ³ timeout: no result after 60 s
- ±: 95% interval by Student's t; of windows as of a correlated series, in blocks as long as the text needs
- pass@k [low, high]: 95% interval
- second line: difference from the baseline (none), paired unit by unit, with its 95% interval; pts: percentage points
- × of a speed: ratio to the baseline (none), not tested
- equiv.: the same as the baseline within 1% or 1 pts, by two one-sided tests at 5%
- a true difference of this size would have been seen in four runs of five (median of the rows): PPL gptq/wikitext2 0.26%; pass@1 humaneval/base/greedy 38 pts
- †: simulated, float weights that carry the rounding: bpw and weights are what packed storage would take; peak memory and speed of a packed model were not measured (–)
- [first N]: only the first N units (windows, problems) were measured
- …: not run yet
- bpw: bits per weight of the quantized linears, scales and every other overhead counted
- weights: stored size, scales, embeddings and head included
- RAM: peak resident set of the row's own process, during the task speed
- speed or time [low, high]: lowest and highest of the repeats
- speed, time and peak memory: measured on box, 4 threads of a CPU
"""


def test_text(small):
    assert render(build_table(small), "text") == TEXT


def test_markdown(small):
    assert render(build_table(small), "markdown") == MARKDOWN


def test_text_of_a_narrow_terminal_deals_the_columns_out_and_loses_none(small):
    table = build_table(small)
    narrow = render(table, "text", width=80)
    assert max(len(line) for line in narrow.splitlines()) <= 80
    assert narrow.count("RTN W4 †") == 2
    cells = [cell for line in TEXT.splitlines()[2:14] for cell in re.split(r" {3,}", line) if cell]
    assert len(cells) > 40
    for cell in cells:
        assert cell.strip("─") in narrow


def test_a_number_is_never_cut_however_narrow_the_terminal(small):
    assert "+10.79% [+10.45, +11.14]" in render(build_table(small), "text", width=10)


def test_colour_changes_no_letter(small):
    coloured = render(build_table(small), "text", color=True)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert [line.rstrip() for line in plain.splitlines()] == TEXT.splitlines()
    assert re.search(r"\x1b\[1;31m\+10\.79%", coloured)


def test_several_models_stand_under_headings(record, ppl):
    records = [record(metrics=[ppl([3.0, 3.1])], model=name) for name in ("org/a", "org/b")]
    table = build_table(records, columns=["ppl"])
    assert render(table, "text").splitlines()[:7] == [
        "quantization   PPL",
        "               gptq/wikitext2",
        "─────────────────────────────",
        "org/a, bfloat16",
        "none           21.12 ± 13.41",
        "",
        "org/b, bfloat16",
    ]
    assert "| **org/b, bfloat16** |  |" in render(table, "markdown").splitlines()


def test_several_dtypes_are_a_column(record, ppl):
    records = [record(metrics=[ppl([3.0, 3.1])], dtype=d) for d in ("float32", "bfloat16")]
    lines = render(build_table(records, columns=["ppl"]), "markdown").splitlines()
    assert "| quantization | dtype | PPL<br>gptq/wikitext2 |" in lines
    assert "| none | bfloat16 | 21.12 ± 13.41 |" in lines


def test_the_starcoder2_layout_is_that_of_the_table_that_started_this_project(record):
    """the StarCoder2 table, its numbers put into records."""
    table_a = [
        ("bigcode/starcoder2-15b", "none", 0.225, 0.677, 29.7),
        ("bigcode/starcoder2-15b", "Q8_0", 0.232, 0.664, 15.2),
        ("bigcode/starcoder2-15b", "Q5_K_M", 0.155, 0.567, 11.9),
        ("deepseek-ai/DeepSeek-Coder-V2-Lite-Instruct", "none", 0.622, 0.841, 32.0),
    ]
    records = []
    for model, quantization, one, ten, size in table_a:
        metrics = [
            Metric(f"pass@{k}", value, "humaneval/base/T0.8-p0.95-n200", n=164)
            for k, value in ((1, one), (10, ten))
        ]
        memory = MemoryReport(vram_process=int(size * GIB), ram_peak=GIB)
        place = (len(model) > 30, ["none", "Q8_0", "Q5_K_M"].index(quantization), 1)
        records.append(
            record(quantization, "humaneval", metrics, model=model, memory=memory, order=place)
        )
    assert (
        render(build_table(records, layout="starcoder2"), "markdown")
        == """\
| model | quantization | HumanEval pass@1 | pass@10 | VRAM |
|---|---|---|---|---|
| starcoder2-15b | none | 22.5% | 67.7% | 30 G |
|  | Q8_0 | 23.2% | 66.4% | 15 G |
|  | Q5_K_M | 15.5% | 56.7% | 12 G |
| DeepSeek-Coder-V2-Lite-Instruct | none | 62.2% | 84.1% | 32 G |

- pass@1: humaneval/base/T0.8-p0.95-n200
- pass@10: humaneval/base/T0.8-p0.95-n200
- VRAM: peak of the row's own process, during the task humaneval
- speed, time and peak memory: measured on box, 4 threads of a CPU
"""
    )


def test_csv_has_raw_numbers_in_columns_of_their_own(small):
    rows = list(csv.DictReader(io.StringIO(render(build_table(small), "csv"))))
    assert [r["quantization"] for r in rows] == ["none", "Q8_0", "Q5_K_M", "RTN W4"]
    none, _, q5, rtn = rows
    name = "ppl gptq/wikitext2"
    assert float(none[name]) == small[0].metrics[0].value
    assert float(none[f"{name} ±"]) == pytest.approx(3.97673, abs=1e-5)  # 3 waves of 6 windows
    assert none[f"{name} difference"] == ""
    assert float(q5[f"{name} difference low"]) == pytest.approx(0.1045, abs=1e-4)
    assert 0 < float(q5[f"{name} p"]) <= float(q5[f"{name} p Holm"]) < 0.05
    assert q5[f"{name} equivalent"] == "0" and 0 < float(q5[f"{name} detectable"]) < 0.01
    assert q5[f"{name} significant"] == "1"
    assert (rtn[name], rtn[f"{name} status"]) == ("", "broken (50% not finite)")
    assert (rtn["simulated"], rtn["bpw (bits)"], rtn["ram_peak (bytes)"]) == ("1", "4.25", "")
    assert q5["decode_tok_s speed/b1 status"] == "timeout"
    assert none["size (bytes)"] == str(2 * GIB + GIB // 4)


def test_json_is_strict_and_holds_the_whole_table(small):
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    infinite = replace(small[2], metrics=(replace(small[2].metrics[0], high=float("inf")),))
    table = build_table([infinite, *small[:2], *small[3:]])
    data = json.loads(render(table, "json"), parse_constant=refuse)
    assert [c["id"] for c in data["columns"]] == [c.id for c in table.columns]
    assert data["rows"][0]["entries"]["decode_tok_s speed/b1"]["high"] is None
    change = data["rows"][2]["entries"]["ppl gptq/wikitext2"]["difference"]
    assert change["kind"] == "relative"
    assert change["significant"] is True
    assert change["value"] == pytest.approx(0.1079, abs=1e-4)
    assert tuple(data["footnotes"]) == table.footnotes
    assert tuple(data["legend"]) == table.legend


def test_markdown_takes_marks_in_names_as_letters(record, ppl):
    odd = record(metrics=[ppl([3.0, 3.1])], model="a|b<c", notes=("one | two",))
    lines = render(build_table([odd], columns=["ppl"]), "markdown").splitlines()
    assert lines[0] == r"**a\|b\<c, bfloat16**"
    assert r"¹ one \| two" in "\n".join(lines)


@pytest.mark.parametrize("fmt", FORMATS)
def test_an_empty_table_renders(fmt):
    assert render(build_table([]), fmt).endswith("\n")


def test_unknown_format(small):
    with pytest.raises(UsageError, match="unknown format 'markdwn'; did you mean 'markdown'"):
        render(build_table(small), "markdwn")


@pytest.mark.parametrize(
    ("column", "entry", "expected"),
    [
        (Column("ppl", "PPL"), Entry(5.47412, 0.03, 5.44, 5.50), "5.474 ± 0.030"),
        (Column("ppl", "PPL"), Entry(21.6178, 0.31, 21.3, 21.9), "21.62 ± 0.31"),
        (Column("ppl", "PPL"), Entry(1302.4, 61.2, 1241.2, 1363.6), "1302 ± 61"),
        (Column("ppl", "PPL"), Entry(4.2e9), "4.2e+09"),
        (
            Column("pass@1", "pass@1", "share"),
            Entry(0.2249, low=0.169, high=0.296),
            "22.5% [16.9, 29.6]",
        ),
        (Column("bpw", "bpw", "bits"), Entry(4.254), "4.25"),
        (Column("size", "weights", "bytes"), Entry(29.7 * GIB, accounted=True), "29.7 †"),
        (Column("wall_s", "evaluate", "s", kind="time"), Entry(200.0), "3 m 20 s"),
        (Column("x", "x"), Entry(0.0), "0"),
        (Column("ppl", "PPL"), Entry(status="failed", notes=(1, 12)), "failed ¹ ¹²"),
        (
            Column("kld", "KLD", "nats"),
            Entry(0.00436, low=0.00395, high=0.00477),
            "0.00436 [0.00395, 0.00477]",
        ),
        (
            Column("kld", "KLD", "nats"),
            Entry(3.09e-9, low=2.87e-9, high=3.32e-9),
            "3.1e-09 [2.9e-09, 3.3e-09]",
        ),
    ],
)
def test_values_have_the_digits_that_their_interval_supports(column, entry, expected):
    assert value_text(column, entry) == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (Difference("relative", 0.0132, 0.0091, 0.0173, None, True), "+1.32% [+0.91, +1.73]"),
        (Difference("relative", -0.00004, -0.001, 0.001, None, False), "+0.00% [-0.10, +0.10] n.s."),
        (Difference("relative", 11.2, 11.1, 11.3, None, True), "×12.20 [12.10, 12.30]"),
        (Difference("relative", 0.003), "+0.3% untested"),
        (Difference("points", -0.037, -0.081, 0.006, 0.1, False), "-3.7 pts [-8.1, +0.6] n.s."),
        (Difference("points", 0.0, 0.0, 0.0, 1.0, False), "identical"),
        (Difference("ratio", 1.3244), "×1.32"),
    ],
)
def test_differences(change, expected):
    assert difference_text(Entry(1.0, difference=change)) == expected
