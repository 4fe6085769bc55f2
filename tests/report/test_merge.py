"""Several results folders in one table: nothing is lost, mixed or replaced without a word."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest

from qeval.core.errors import UsageError
from qeval.core.record import Conditions, MemoryReport, Metric
from qeval.report import build_table, render

GIB = 2**30
LAPTOP = Conditions("laptop", "cpu", "a CPU", n_threads=4, engine_version="torch 2.13.0")
ONE = replace(LAPTOP, n_threads=1)
CI = Conditions("ci", "cpu", "another CPU", n_threads=2, engine_version="torch 2.13.0")
GPU = Conditions("box", "cuda:0", "H200", n_threads=16, engine_version="torch 2.13.0")
RAM, VRAM = MemoryReport(ram_peak=3 * GIB), MemoryReport(ram_peak=GIB, vram_process=9 * GIB)


def at(made, folder: str, conditions: Conditions | None, *, key: str = "", end: float = 0.0):
    """The record as it lies in a folder, measured under these conditions."""
    asked = {f: getattr(conditions, f, None) for f in ("host", "device", "device_name", "n_threads")}
    cell = {**made.cell, "conditions": asked} if key and conditions else made.cell
    name = f"{made.key}{key}"
    timing = {"end": end} if end else {}
    return replace(made, folder=folder, conditions=conditions, cell=cell, key=name, timing=timing)


def tok(value: float, protocol: str = "speed/d16+8b1") -> Metric:
    low, high = 0.9 * value, 1.1 * value
    return Metric("decode_tok_s", value, protocol, "tok/s", low=low, high=high, n=3)


def shown(table, column: str) -> list[float | None]:
    """The values of one column, by the rows' names."""
    return [r.entries[column].value for r in sorted(table.rows, key=lambda r: r.quantization)]


def columns(table, name: str) -> list[str]:
    return [c.where for c in table.columns if c.name == name]


@pytest.fixture
def speeds(record):
    """none and Q8_0, on one thread in folder A and on four in B."""

    def both(folder, conditions, factor):
        return [
            at(record(q, "speed", [tok(factor * v)]), folder, conditions, key=folder)
            for q, v in (("none", 10.0), ("Q8_0", 30.0))
        ]

    return both("A", ONE, 1.0), both("B", LAPTOP, 3.0)


@pytest.mark.parametrize("fmt", ["text", "markdown", "csv", "json"])
def test_two_thread_counts_are_two_columns_whatever_folder_comes_first(speeds, fmt):
    a, b = speeds
    tables = [build_table([*a, *b]), build_table([*b, *a])]
    assert columns(tables[0], "decode_tok_s") == ["1 thread", "4 threads"]
    assert render(tables[0], fmt) == render(tables[1], fmt)
    name = "decode_tok_s speed/d16+8b1"
    assert shown(tables[0], f"{name} [1 thread]") == [30.0, 10.0]
    assert shown(tables[0], f"{name} [4 threads]") == [90.0, 30.0]
    differences = [r.entries[f"{name} [4 threads]"].difference for r in tables[0].rows]
    assert differences[0] is None and differences[1].value == pytest.approx(3.0)
    assert "1 thread: measured on laptop, 1 thread of a CPU" in tables[0].legend
    assert columns(tables[0], "ram_peak") == ["1 thread", "4 threads"]


def test_a_ratio_is_of_the_same_conditions_or_none(record):
    records = [
        at(record("none", "speed", [tok(10.0)]), "A", GPU, key="gpu"),
        at(record("Q8_0", "speed", [tok(30.0)]), "A", LAPTOP, key="cpu"),
    ]
    table = build_table(records)
    assert all(e.difference is None for row in table.rows for e in row.entries.values())
    cpu = "decode_tok_s speed/d16+8b1 [laptop, cpu]"
    assert [row.entries[cpu].status for row in table.rows] == ["–", ""]


def test_gguf_on_the_cpu_beside_rows_on_cuda_keeps_its_memory_and_is_marked(record, ppl):
    """One run on one machine: VRAM of the rows on the GPU, RAM of the others."""
    here = replace(LAPTOP, host="box")
    records = [
        at(record("none", "speed", [tok(90.0)], memory=VRAM), "A", GPU, key="x"),
        at(record("none", metrics=[ppl([3.0, 3.1])], memory=VRAM), "A", GPU),
        at(record("Q8_0", "speed", [tok(30.0)], memory=RAM), "A", here, key="x"),
        at(record("Q8_0", metrics=[ppl([3.0, 3.2])], memory=RAM), "A", here),
    ]
    table = build_table(records)
    memory = [(c.name, c.where) for c in table.columns if c.name in ("vram_process", "ram_peak")]
    assert memory == [("ram_peak", "cpu"), ("vram_process", "H200")]
    assert shown(table, "ram_peak [cpu]") == [3 * GIB, None]
    assert shown(table, "vram_process [H200]") == [None, 9 * GIB]
    assert columns(table, "decode_tok_s") == ["cpu", "H200"]
    assert columns(table, "ppl") == [""]
    q8 = table.rows[1]
    assert q8.entries["ppl gptq/wikitext2"].difference is not None
    assert [table.footnotes[n - 1] for n in q8.notes] == [
        "runs on llamacpp on a CPU, the baseline on hf on H200"
    ]


def test_another_cpu_or_engine_is_a_note_and_the_numbers_are_compared(record, ppl):
    base = at(record("none", metrics=[ppl([3.0, 3.1])]), "A", LAPTOP)
    same = at(record("RTN W4", metrics=[ppl([3.1, 3.2])]), "B", LAPTOP)
    other = at(record("RTN W4", metrics=[ppl([3.1, 3.2])]), "B", CI)
    assert build_table([base, same]).footnotes == ()
    table = build_table([base, other])
    assert table.footnotes == ("runs on another CPU, the baseline on a CPU",)
    assert table.rows[1].entries["ppl gptq/wikitext2"].difference.significant is not None


def test_a_way_that_only_one_number_took_is_noted_at_that_number(record, ppl, pass_at_1):
    records = [
        at(record("none", metrics=[ppl([3.0, 3.1])]), "A", GPU),
        at(record("none", "humaneval", [pass_at_1([1.0, 0.0])]), "A", GPU),
        at(record("RTN W4", metrics=[ppl([3.1, 3.2])]), "A", GPU),
        at(record("RTN W4", "humaneval", [pass_at_1([1.0, 0.0])]), "A", LAPTOP),
    ]
    records.append(at(record("RTN W4", metrics=[ppl([2.0, 2.1], "gptq/c4")]), "A", LAPTOP, end=1.0))
    records[-1] = replace(records[-1], key="c4")
    records.append(replace(at(record("none", metrics=[ppl([2.0, 2.0], "gptq/c4")]), "A", CI), key="c5"))
    table = build_table(records)
    row = table.rows[1]
    noted = {c.id: [table.footnotes[n - 1] for n in row.entries[c.id].notes] for c in table.columns}
    assert noted["ppl gptq/wikitext2"] == [] and row.notes == ()
    assert noted["pass@1 humaneval/base/greedy"] == ["runs on a CPU, the baseline on H200"]
    assert noted["ppl gptq/c4"] == ["runs on a CPU, the baseline on another CPU"]


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_folders_with_the_same_cell_the_newest_shows_and_the_other_is_named(record, ppl, order):
    old = at(record(metrics=[ppl([3.0, 3.1])]), "results/old", LAPTOP, end=1700000000.0)
    new = at(record(metrics=[ppl([3.0, 3.3])]), "results/new", CI, end=1700003600.0)
    table = build_table([old, new][::order])
    (found,) = [row.entries["ppl gptq/wikitext2"] for row in table.rows]
    assert found.value == new.metrics[0].value
    assert table.footnotes == (
        "from results/new, the newest (2023-11-14 23:13); results/old has 21.12 ± 13.41 "
        "(2023-11-14 22:13)",
    )
    again = replace(old, metrics=new.metrics)
    table = build_table([again, new][::order])
    assert table.footnotes == ("from results/new, the newest; results/old has the same",)


def test_a_copy_of_a_folder_is_the_folder(small):
    originals = [replace(r, folder="a", timing={"end": 5.0}) for r in small]
    copies = [replace(r, folder="b") for r in originals]
    assert build_table([*originals, *copies]) == build_table(originals)


def test_a_failure_does_not_hide_what_another_folder_measured(record, ppl):
    failed = replace(record(status="failed", error="x"), folder="b", timing={"end": 9.0})
    found = at(record(metrics=[ppl([3.0, 3.1])]), "a", LAPTOP, end=1.0)
    for records in ([failed, found], [found, failed]):
        table = build_table(records)
        assert table.rows[0].entries["ppl gptq/wikitext2"].value == found.metrics[0].value
        assert table.footnotes == ()


def test_what_failed_on_one_machine_stands_beside_what_another_measured(record):
    failed = at(record("none", "speed", status="oom", error="too large"), "a", LAPTOP, key="a")
    found = at(record("none", "speed", [tok(90.0)]), "b", GPU, key="b")
    table = build_table([failed, found])
    (row,) = table.rows
    assert row.entries["speed [laptop, cpu]"].status == "oom"
    assert row.entries["decode_tok_s speed/d16+8b1 [box, H200]"].value == 90.0


def test_numbers_of_0_1_0_are_read_and_their_conditions_are_unknown(record):
    old = at(record("none", "speed", [tok(10.0)]), "a", None)
    table = build_table([old])
    assert shown(table, "decode_tok_s speed/d16+8b1") == [10.0]
    assert any("conditions unknown" in line for line in table.legend)
    new = at(record("none", "speed", [tok(20.0)]), "b", LAPTOP, key="b")
    table = build_table([old, new])
    wheres = ["laptop, 4 threads", "conditions unknown"]
    assert columns(table, "decode_tok_s") == wheres
    assert columns(build_table([new, old]), "decode_tok_s") == wheres
    inside = replace(new, folder="a")  # measured again by the same folder's next run
    assert columns(build_table([old, inside]), "decode_tok_s") == [""]
    rows = list(csv.DictReader(io.StringIO(render(build_table([old]), "csv"))))
    assert rows[0]["decode_tok_s speed/d16+8b1 conditions"] == "conditions unknown"


def test_csv_and_json_have_the_conditions_and_the_kind_of_every_difference(record, ppl, pass_at_1):
    first_token = Metric("ttft_s", 0.5, "speed/p9", "s")
    share = Metric("accuracy", 0.5, "mmlu", "share")
    odd = Metric("fertility", 1.5, "odd")
    metrics = [ppl([3.0, 3.1]), pass_at_1([1.0, 0.0]), tok(9.0), first_token, share, odd]
    records = [at(record(q, metrics=metrics), "a", LAPTOP) for q in ("none", "RTN W4")]
    simulated = records[1].artifact
    records[1] = replace(records[1], artifact={**simulated, "simulated": False})
    table = build_table(records)
    row = list(csv.DictReader(io.StringIO(render(table, "csv"))))[1]
    kinds = {k.removesuffix(" difference kind"): v for k, v in row.items() if k.endswith(" kind")}
    assert kinds == {
        "ppl gptq/wikitext2": "relative",
        "pass@1 humaneval/base/greedy": "points",
        "decode_tok_s speed/d16+8b1": "ratio",
        "ttft_s speed/p9": "time",
        "accuracy mmlu": "points",
        "fertility odd": "ratio",
    }
    assert row["decode_tok_s speed/d16+8b1 conditions"] == "laptop, 4 threads of a CPU"
    assert row["ram_peak conditions"] == "laptop, 4 threads of a CPU"
    assert "ppl gptq/wikitext2 conditions" not in row
    data = json.loads(render(table, "json"))
    places = {c["id"]: c["place"] for c in data["columns"]}
    assert places["ttft_s speed/p9"] == {
        "host": "laptop",
        "device": "cpu",
        "device_name": "a CPU",
        "n_threads": 4,
    }
    assert places["ppl gptq/wikitext2"] is None
    entries = data["rows"][1]["entries"]
    assert {name: entries[name]["difference"]["kind"] for name in kinds} == kinds
    (line,) = [line for line in table.legend if line.startswith("×")]
    assert line == "× of a speed or time or fertility: ratio to the baseline (none), not tested"


def test_times_are_by_host(record, ppl):
    ours = record("Q8_0", metrics=[ppl([3.0])])
    cell = {k: ours.cell[k] for k in ("model", "quantization")}
    built = replace(ours, kind="build", key="b", cell=cell, metrics=(), timing={"build_s": 3.0})
    other = replace(built, folder="B", conditions=CI, timing={"build_s": 7.0, "end": 2.0})
    records = [ours, replace(built, folder="A", conditions=LAPTOP), other]
    table = build_table(records, wide=True)
    found = {c.id: table.rows[0].entries[c.id].value for c in table.columns if c.kind == "time"}
    assert found["build_s [ci]"] == 7.0 and found["build_s [laptop]"] == 3.0


def test_the_first_folders_baseline_and_order_win(record, ppl):
    def named(folder, baseline, order):
        found = []
        for q in order:
            made = at(record(q, metrics=[ppl([3.0, 3.1])]), folder, LAPTOP)
            cell = {**made.cell, "baseline": q == baseline, "order": [0, order.index(q), 0]}
            found.append(replace(made, cell=cell, key=f"{folder}{q}"))
        return found

    a = named("A", "none", ["none", "Q8_0"])
    b = named("B", "Q8_0", ["Q5_K_M", "Q8_0", "none"])
    for records, order, base in (
        ([*a, *b], ["none", "Q8_0", "Q5_K_M"], "none"),
        ([*b, *a], ["Q5_K_M", "Q8_0", "none"], "Q8_0"),
    ):
        table = build_table(records)
        assert [r.quantization for r in table.rows] == order
        assert [r.quantization for r in table.rows if r.baseline] == [base]


def test_a_baseline_is_chosen_by_label_or_method(small):
    assert [r.quantization for r in build_table(small, baseline="q8_0").rows if r.baseline] == ["Q8_0"]
    assert [r.quantization for r in build_table(small, baseline="gguf").rows if r.baseline] == ["Q8_0"]
    table = build_table(small, baseline="Q5_K_M")
    change = table.rows[0].entries["ppl gptq/wikitext2"].difference
    assert change.value == pytest.approx(1 / 1.10794 - 1, abs=1e-4)
    with pytest.raises(UsageError, match="--baseline: no row is called 'Q8'; did you mean 'Q8_0'"):
        build_table(small, baseline="Q8")


@pytest.mark.parametrize(
    ("column", "order"),
    [
        ("bpw", ["RTN W4", "Q5_K_M", "Q8_0", "none"]),
        ("-bpw", ["none", "Q8_0", "Q5_K_M", "RTN W4"]),
        ("-ppl", ["Q5_K_M", "none", "Q8_0", "RTN W4"]),  # what has no number comes last
        ("decode*", ["none", "Q8_0", "Q5_K_M", "RTN W4"]),
    ],
)
def test_rows_are_sorted_by_a_column_inside_their_model(small, record, ppl, column, order):
    other = record("none", metrics=[ppl([1.0, 2.0])], model="org/first", order=(-1, 0, 0))
    table = build_table([*small, other], sort=column)
    assert table.models == ("org/first", "org/model")
    assert [r.quantization for r in table.rows[1:]] == order
    assert build_table(small, sort=column).rows[0].entries.keys() == (
        build_table(small).rows[0].entries.keys()
    )


def test_a_sort_must_mean_one_column(small, record, ppl):
    more = record(metrics=[ppl([1.0, 2.0], "llamacpp/wikitext2")])
    with pytest.raises(UsageError, match=r"2 columns match 'ppl' \('ppl gptq/wikitext2', 'ppl llama"):
        build_table([*small, replace(more, key="more")], sort="ppl")
    with pytest.raises(UsageError, match="no column 'pl' in these results; did you mean 'ppl'"):
        build_table(small, sort="pl")


def test_only_chooses_rows_and_columns_and_keeps_the_differences(small):
    table = build_table(small, only=["q8_0"])
    assert [r.quantization for r in table.rows] == ["Q8_0"]
    assert table.rows[0].entries["decode_tok_s speed/b1"].difference.value == pytest.approx(1.5)
    assert any("baseline (none)" in line for line in table.legend)
    table = build_table(small, only=["speed"])
    assert [c.name for c in table.columns if c.kind == "metric"] == ["decode_tok_s"]
    assert [r.quantization for r in table.rows] == ["none", "Q8_0", "Q5_K_M", "RTN W4"]
    table = build_table(small, only=["gguf"])
    assert [r.quantization for r in table.rows] == ["Q8_0", "Q5_K_M"]
    with pytest.raises(
        UsageError, match="--only Q9: no cell has that in its name, such as 'org/model · no"
    ):
        build_table(small, only=["Q9"])
