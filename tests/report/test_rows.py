"""Which rows and columns a set of records becomes, and what a cell shows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qeval.core.errors import UsageError
from qeval.core.record import MemoryReport, Metric, Record
from qeval.report.render import render
from qeval.report.rows import build_table

GIB = 2**30


def column_ids(table) -> list[str]:
    return [c.id for c in table.columns]


def entry(table, label, column):
    [row] = [r for r in table.rows if r.quantization == label]
    return row.entries[column]


def test_two_protocols_never_share_a_column(record, ppl):
    metrics = [ppl([1.0, 2.0], "gptq/c4"), ppl([1.0, 2.0], "llamacpp/c4")]
    table = build_table([record(metrics=metrics)])
    assert column_ids(table)[-2:] == ["ppl gptq/c4", "ppl llamacpp/c4"]


def test_a_limited_measurement_has_a_column_of_its_own(record, ppl):
    whole = record(metrics=[ppl([1.0] * 9)])
    first = record(metrics=[ppl([1.0] * 4)], limit=4)
    table = build_table([whole, first])
    assert column_ids(table)[-2:] == ["ppl gptq/wikitext2", "ppl gptq/wikitext2 [first 4]"]
    assert len(table.rows) == 1


def test_a_limit_that_cut_nothing_off_is_not_shown(record, ppl):
    table = build_table([record(metrics=[ppl([1.0] * 9)], limit=50)])
    assert column_ids(table)[-1] == "ppl gptq/wikitext2"


def test_rows_and_columns_stand_in_the_order_of_the_spec(small, record, ppl):
    other = record("none", metrics=[ppl([1.0, 2.0])], model="org/first", order=(0, 0, 0))
    moved = [replace(r, cell={**r.cell, "order": [1, *r.cell["order"][1:]]}) for r in small]
    table = build_table([*reversed(moved), other])
    assert table.models == ("org/first", "org/model")
    assert [r.quantization for r in table.rows[1:]] == ["none", "Q8_0", "Q5_K_M", "RTN W4"]
    assert [c.name for c in table.columns] == [
        "bpw",
        "size",
        "ram_peak",
        "ppl",
        "pass@1",
        "decode_tok_s",
    ]


def test_rows_without_an_order_stand_as_they_came(small):
    bare = [replace(r, cell={k: v for k, v in r.cell.items() if k != "order"}) for r in small]
    labels = [r.quantization for r in build_table(bare).rows]
    assert labels == ["none", "Q8_0", "Q5_K_M", "RTN W4"]


def test_differences_are_taken_from_the_models_own_baseline(small, record, ppl):
    other = [
        record("none", metrics=[ppl([9.0, 9.0, 9.1])], model="b"),
        record("Q8_0", metrics=[ppl([9.1, 9.1, 9.2])], model="b"),
    ]
    table = build_table([*small, *other])
    change = table.rows[-1].entries["ppl gptq/wikitext2"].difference
    assert change.value == pytest.approx(0.105, abs=1e-3)
    assert change.significant
    assert all(e.difference is None for e in table.rows[0].entries.values())


def test_each_dtype_has_its_own_baseline(record, ppl):
    records = [
        record("none", metrics=[ppl([1.0, 1.0])], dtype="float32"),
        record("none", metrics=[ppl([2.0, 2.0])], dtype="bfloat16"),
        record("Q8_0", metrics=[ppl([2.0, 2.0])], dtype="bfloat16"),
    ]
    table = build_table(records)
    assert table.dtypes == ("float32", "bfloat16")
    [q8] = [r for r in table.rows if r.quantization == "Q8_0"]
    assert q8.entries["ppl gptq/wikitext2"].difference.value == 0


def test_another_text_is_not_compared_and_says_so(record, ppl):
    records = [
        record(metrics=[ppl([1.0, 2.0])], provenance={"text_sha256": "a"}),
        record("Q8_0", metrics=[ppl([1.0, 2.0])], provenance={"text_sha256": "b"}),
    ]
    table = build_table(records)
    found = entry(table, "Q8_0", "ppl gptq/wikitext2")
    assert found.difference is None
    assert table.footnotes[1:] == ("no difference shown: other text than the baseline's",)
    assert found.notes == (2,)


def test_a_simulated_row_shows_accounted_bytes_and_nothing_measured(small):
    table = build_table(small, wide=True)
    rtn = table.rows[-1].entries
    assert rtn["bpw"].accounted and rtn["weights"].accounted and rtn["embeddings"].accounted
    assert (rtn["ram_peak"].value, rtn["ram_peak"].status) == (None, "–")
    assert (rtn["decode_tok_s speed/b1"].value, rtn["decode_tok_s speed/b1"].status) == (None, "–")
    assert rtn["kv_cache"].value == GIB // 8
    assert not table.rows[1].entries["bpw"].accounted


def test_simulated_rows_hide_vram_too(record, ppl):
    memory = MemoryReport(vram_process=9 * GIB, vram_allocated=8 * GIB, vram_reserved=9 * GIB)
    records = [record(q, metrics=[ppl([1.0])], memory=memory) for q in ("none", "RTN W4")]
    for row in build_table(records, wide=True).rows:
        shown = [row.entries[f"vram_{n}"].value for n in ("process", "allocated", "reserved")]
        assert shown == ([None] * 3 if row.simulated else [9 * GIB, 8 * GIB, 9 * GIB])


def low_bits(record, name="none", task="perplexity", **fields):
    """A record of the row ``name`` with 4-bit keys and values (and 8-bit activations, if it is RTN)."""
    found = record(name, task, order=(0, 9, 0), **fields)
    asked = {"kv_cache": {"num_bits": 4, "group_size": 128}}
    asked |= {"activations": {"num_bits": 8}} if name.startswith("RTN") else {}
    label = {"none": "KV4", "RTN W4": "RTN W4A8KV4"}[name]
    q = found.cell["quantization"]
    cell = {**found.cell, "quantization": {**q, "label": label, "options": {**q["options"], **asked}}}
    return replace(found, key=f"{found.key}-low", cell={**cell, "baseline": False})


def test_a_row_with_a_rounded_cache_shows_its_accounted_bytes_and_nothing_measured(small, record, ppl):
    tok = Metric("decode_tok_s", 7.0, "speed/b1", "tok/s")
    more = [
        low_bits(record, metrics=[ppl([1.0] * 6)]),
        low_bits(record, task="speed", metrics=[tok]),
        low_bits(record, "RTN W4", metrics=[ppl([1.0] * 6)]),
        low_bits(record, "RTN W4", task="speed", status="skipped", error="simulated"),
    ]
    table = build_table([*small, *more], wide=True)
    rows = {r.quantization: r for r in table.rows}
    for label, weights in (("KV4", False), ("RTN W4A8KV4", True)):
        row = rows[label]
        assert (row.marked, row.low_bits, row.simulated) == (True, True, weights)
        assert row.entries["kv_cache"].accounted
        assert row.entries["bpw"].accounted == row.entries["weights"].accounted == weights
        for column in ("ram_peak", "decode_tok_s speed/b1"):
            assert (row.entries[column].value, row.entries[column].status) == (None, "–")
        assert row.entries["ppl gptq/wikitext2"].difference is not None
    assert not rows["RTN W4"].entries["kv_cache"].accounted
    assert (
        "†: A2 to A8, KV2 to KV8: activations, keys and values rounded, and kept as floats; KV cache "
        "is what packed storage would take; peak memory and speed were not measured (–)"
    ) in table.legend


def test_the_cache_of_rows_that_skip_the_task_of_the_peaks_is_for_its_context_too(record, ppl):
    tok = Metric("decode_tok_s", 1.0, "speed/b1", "tok/s")
    short, long = (MemoryReport(kv_cache=n * 16, context=n) for n in (256, 2048))
    records = [
        record(metrics=[ppl([1.0])], memory=short),
        record(task="speed", metrics=[tok], memory=long),
        low_bits(record, metrics=[ppl([1.0])], memory=replace(short, kv_cache=256 * 4)),
        low_bits(record, task="speed", status="skipped", error="simulated"),
    ]
    table = build_table(records, wide=True)
    assert [r.entries["kv_cache"].value for r in table.rows] == [2048 * 16, 2048 * 4]
    assert "KV cache: one sequence of 2,048 tokens" in table.legend


def test_only_rounded_caches_need_no_line_on_simulated_weights(record, ppl):
    table = build_table([record(metrics=[ppl([1.0])]), low_bits(record, metrics=[ppl([1.1])])])
    assert [line[:8] for line in table.legend if line.startswith("†")] == ["†: A2 to"]
    assert not any(line.startswith("†") for line in build_table([record(metrics=[ppl([1.0])])]).legend)


def test_one_build_is_that_of_all_rows_that_run_its_weights(record, ppl):
    ours = record("RTN W4", metrics=[ppl([1.0])])
    cell = {k: ours.cell[k] for k in ("model", "quantization")}
    build = Record("build", "b", cell, "ok", timing={"build_s": 3.0})
    table = build_table([build, ours, low_bits(record, "RTN W4", metrics=[ppl([1.0])])], wide=True)
    assert [r.entries["build_s"].value for r in table.rows] == [3.0, 3.0]


def test_failures_show_their_status_and_reason(small):
    table = build_table(small)
    found = entry(table, "Q5_K_M", "decode_tok_s speed/b1")
    assert found.status == "timeout"
    assert table.footnotes[found.notes[0] - 1] == "timeout: no result after 60 s"


def test_the_same_note_keeps_its_number(small):
    table = build_table(small)
    drifted = [entry(table, q, "ppl gptq/wikitext2").notes for q in ("Q8_0", "Q5_K_M")]
    assert drifted == [(2,), (2,)]
    assert table.footnotes[1] == "tokenizer drift: 2 tokens differ"


def test_notes_of_the_artifact_stand_once_at_the_row(record, ppl):
    fallback = "12 layers fell back to Q8_0"
    base = record("Q8_0", metrics=[ppl([1.0, 2.0])], notes=(fallback,))
    table = build_table([replace(base, artifact={**base.artifact, "notes": [fallback]})])
    assert table.rows[0].notes == (1,)
    assert table.rows[0].entries["ppl gptq/wikitext2"].notes == ()


def test_a_broken_metric_says_how_much_of_it(small):
    found = entry(build_table(small), "RTN W4", "ppl gptq/wikitext2")
    assert (found.value, found.status) == (None, "broken (50% not finite)")


def test_a_cell_that_was_not_run_is_pending(small):
    assert entry(build_table(small), "RTN W4", "pass@1 humaneval/base/greedy [first 20]").status == "…"


def test_a_task_that_never_gave_a_number_still_has_a_column(record):
    failed = record("none", "humaneval", status="skipped", error="the engine offers no generate")
    table = build_table([failed])
    assert column_ids(table) == ["humaneval"]
    assert table.rows[0].entries["humaneval"].status == "skipped"
    assert table.footnotes == ("skipped: the engine offers no generate",)


def test_a_later_failure_does_not_hide_an_ok_result(small):
    again = replace(small[0], status="failed", error="x", metrics=())
    assert build_table([*small, again]) == build_table(small)


def test_memory_comes_from_one_task(record, ppl):
    big, little = MemoryReport(ram_peak=9 * GIB), MemoryReport(ram_peak=2 * GIB)
    tok = Metric("decode_tok_s", 1.0, "speed/b1", "tok/s")
    records = [
        record("none", "perplexity", [ppl([1.0])], memory=big),
        record("none", "speed", [tok], memory=little),
        record("Q8_0", "perplexity", [ppl([1.0])], memory=big),
    ]
    failed = record("Q8_0", "speed", status="failed", error="x")
    table = build_table([*records, failed])
    assert [r.entries["ram_peak"].value for r in table.rows] == [2 * GIB, None]
    assert "RAM: peak resident set of the row's own process, during the task speed" in table.legend
    table = build_table(
        records
    )  # no speed was asked of it: what is known of it is not lost, but marked
    assert [r.entries["ram_peak"].value for r in table.rows] == [2 * GIB, 9 * GIB]
    (note,) = table.rows[1].entries["ram_peak"].notes
    assert table.footnotes[note - 1].startswith("peak during the task perplexity, not speed as in")


def test_each_model_has_its_peaks_from_a_task_of_its_own(record, ppl):
    """Merging folders lost the memory of all models but those with the best task."""
    tok = Metric("decode_tok_s", 1.0, "speed/b1", "tok/s")
    records = [
        record("none", "perplexity", [ppl([1.0])], model="org/a"),
        record("none", "speed", [tok], model="org/b"),
        record("none", "perplexity", [ppl([1.0])], model="org/b"),
        record("none", "perplexity", [ppl([1.0])], model="org/c"),
    ]
    table = build_table(records)
    assert [r.entries["ram_peak"].value for r in table.rows] == [3 * GIB] * 3
    assert not any(r.entries["ram_peak"].notes for r in table.rows)
    assert (
        "RAM: peak resident set of the row's own process, during the task perplexity (org/a, org/c), "
        "speed (org/b)"
    ) in table.legend


@pytest.mark.parametrize(
    ("memory", "name", "title"),
    [
        (MemoryReport(vram_process=GIB, vram_allocated=1, ram_peak=1), "vram_process", "VRAM"),
        (MemoryReport(vram_allocated=GIB, ram_peak=1), "vram_allocated", "VRAM allocated"),
        (MemoryReport(ram_peak=GIB), "ram_peak", "RAM"),
    ],
)
def test_the_short_form_names_the_memory_it_shows(record, ppl, memory, name, title):
    table = build_table([record(metrics=[ppl([1.0])], memory=memory)])
    assert [(c.name, c.title) for c in table.columns if c.kind == "memory"][-1] == (name, title)


def test_wide_has_every_notion_of_memory_and_the_times(record, ppl):
    memory = MemoryReport(1, 2, 3, 2048, 4, 5, 6, 7)
    ours = record("Q8_0", metrics=[ppl([1.0])], memory=memory, timing={"wall_s": 15.0})
    build = Record(
        "build",
        "b",
        {k: ours.cell[k] for k in ("model", "quantization")},
        "ok",
        memory=MemoryReport(ram_peak=11),
        timing={"build_s": 3.0},
    )
    table = build_table([build, ours], wide=True)
    shown = {c.name: table.rows[0].entries[c.id].value for c in table.columns if c.kind != "metric"}
    weights = int(8.5 * GIB / 8)
    assert shown == {
        "bpw": 8.5,
        "bpw_file": 8.6,
        "weights": weights,
        "embeddings": GIB // 4,
        "kv_cache": 3,
        "vram_allocated": 4,
        "vram_reserved": 5,
        "vram_process": 6,
        "ram_peak": 7,
        "build_s": 3.0,
        "build_ram": 11,
        "wall_s": 15.0,
    }
    assert "KV cache: one sequence of 2,048 tokens" in table.legend


def test_columns_are_chosen_by_name_or_glob_in_the_given_order(small):
    assert column_ids(build_table(small, columns=["pass@1", "BPW*"])) == [
        "pass@1 humaneval/base/greedy [first 20]",
        "bpw",
        "bpw_file",
    ]
    with pytest.raises(UsageError, match="no column 'pas@1' in these results; did you mean 'pass@1'"):
        build_table(small, columns=["pas@1"])


def test_starcoder2_layout_has_exactly_its_columns(small):
    table = build_table(small, layout="starcoder2")
    assert [c.name for c in table.columns] == ["pass@1", "pass@10", "ram_peak"]


def test_two_models_of_one_name_are_told_apart(record, ppl):
    mine = record(metrics=[ppl([1.0])])
    changed = {**mine.cell, "model": {**mine.cell["model"], "identity": "sha256:0123456789abcdef"}}
    table = build_table([mine, replace(mine, key="other", cell=changed)])
    assert table.models == ("org/model (sha256:org/model)", "org/model (sha256:0123456789abc)")


def test_two_revisions_of_a_hubs_model_are_told_apart(record, ppl):
    mine = record(metrics=[ppl([1.0])])
    records = []
    for commit in ("01" * 20, "ab" * 20):
        model = {**mine.cell["model"], "identity": f"hub:organisation/some-model@{commit}"}
        records.append(replace(mine, key=commit, cell={**mine.cell, "model": model}))
    assert build_table(records).models == ("org/model (@010101010101)", "org/model (@abababababab)")


def test_two_engines_of_one_quantization_are_told_apart(record, ppl):
    mine = record("Q8_0", metrics=[ppl([1.0])])
    other = replace(mine, key="other", cell={**mine.cell, "engine": {"name": "hf"}})
    labels = [r.quantization for r in build_table([mine, other]).rows]
    assert labels == ["Q8_0 (llamacpp)", "Q8_0 (hf)"]


def test_no_records_make_an_empty_table():
    table = build_table([])
    assert (table.columns, table.rows, table.footnotes) == ((), (), ())


def test_no_baseline_is_said(record, ppl):
    records = [record(q, metrics=[ppl([1.0])]) for q in ("Q8_0", "Q5_K_M")]
    assert "no row is a baseline: no differences are shown" in build_table(records).legend


def test_a_gguf_model_has_no_dtype_in_its_title(record, ppl):
    gguf = [record(metrics=[ppl([3.0, 3.1])], model="models/m-Q8_0.gguf")]
    assert render(build_table(gguf), "text").splitlines()[0] == "models/m-Q8_0.gguf"
    assert build_table(gguf).dtypes == ()
    floats = [record(metrics=[ppl([3.0, 3.1])])]
    assert render(build_table(floats), "text").splitlines()[0] == "org/model, bfloat16"
    both = render(build_table([*gguf, *floats]), "markdown")
    assert "| **models/m-Q8_0.gguf** |" in both and "| **org/model, bfloat16** |" in both
    several = [*gguf, *floats, record(metrics=[ppl([3.0, 3.1])], dtype="float16", model="other")]
    lines = render(build_table(several), "markdown").splitlines()
    assert next(line for line in lines if line.startswith("| none")).startswith("| none | – |")


def test_a_word_that_heads_a_column_is_that_column(small):
    def asked(*names):
        return [c.title for c in build_table(small, wide=True, columns=list(names)).columns]

    assert asked("weights") == ["weights"]
    assert asked("Weights", "layers") == ["weights", "layers"]
    assert asked("size") == ["weights"]
    assert asked("weight*") == ["weights", "layers"]
    assert asked("decode") == ["decode"]
    for column in build_table(small, wide=True).columns:
        assert {c.title for c in build_table(small, columns=[column.title]).columns} == {column.title}


def test_a_failed_cells_note_names_its_log(record, ppl):
    failed = {"status": "failed", "error": "no\nmore lines", "log": "jobs/eval-0.log"}
    records = [record(metrics=[ppl([3.0, 3.1])]), record("Q8_0", **failed), record("Q5_K_M", **failed)]
    notes = build_table(records).footnotes
    assert notes == ("failed: no (log: jobs/eval-0.log)",)
