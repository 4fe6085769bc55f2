"""Names, order and baseline of a table are those of the spec that lies beside the results."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from planned import plan

from qeval.core.artifact import ModelRef
from qeval.core.record import Metric, Record
from qeval.plan.kept_spec import as_kept_spec_says
from qeval.plan.spec import load_spec
from qeval.report import build_table
from qeval.report.results import read_results
from qeval.store.records import Store

SPEC = """\
name: t
models: [m]
dtype: float32
quantizations:
  - rtn: {num_bits: 8}
  - rtn: {num_bits: 4, group_size: 32}
  - gguf: Q8_0
baseline: RTN W8A16
tasks:
  - perplexity: {datasets: [wikitext2, ptb]}
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """Results of SPEC: a number of every cell, as a run leaves them."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "llama"}))
    store = Store(tmp_path / "r")
    store.folder.mkdir()
    path = store.folder / "spec.yaml"
    path.write_text(SPEC)
    for i, cell in enumerate(plan(load_spec(path), [ModelRef("m", model, "x", "float32")], tmp_path)):
        values = (3.0 + i / 10, 3.1 + i / 10)
        metric = Metric("ppl", 20.0 + i, cell.task.label, n=2, values=values)
        store.append(Record("eval", cell.key, cell.describe(), "ok", (metric,)))
    return store.folder


def shown(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Rows, baselines and columns of `qeval table`."""
    table = build_table(read_results([folder]))
    rows = [row.quantization for row in table.rows]
    return rows, [r.quantization for r in table.rows if r.baseline], [c.protocol for c in table.columns]


def edit(folder: Path, *changes: tuple[str, str]) -> None:
    path = folder / "spec.yaml"
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


ROWS, COLUMNS = ["RTN W8A16", "RTN W4A16g32", "Q8_0"], ["gptq/wikitext2", "gptq/ptb"]


def test_an_unchanged_spec_changes_nothing(folder):
    records = Store(folder).read()
    said = as_kept_spec_says(records, folder)
    planned = [record.cell.pop("planned") for record in said]
    assert said == records and planned == [{"gptq/wikitext2": "", "gptq/ptb": ""}] * len(records)
    assert shown(folder) == (ROWS, ROWS[:1], COLUMNS)


def test_a_changed_baseline_and_order_hold_at_once(folder):
    edit(
        folder,
        ("baseline: RTN W8A16", "baseline: Q8_0"),
        ("  - gguf: Q8_0\n", ""),
        ("  - rtn: {num_bits: 8}\n", "  - gguf: Q8_0\n  - rtn: {num_bits: 8}\n"),
        ("[wikitext2, ptb]", "[ptb, wikitext2]"),
    )
    assert shown(folder) == (["Q8_0", "RTN W8A16", "RTN W4A16g32"], ["Q8_0"], COLUMNS[::-1])


def test_a_renamed_row_has_its_new_name(folder, tmp_path):
    """`label:` of a checkpoint; the record keeps the old one."""
    records = Store(folder).read()
    options = {"path": "w", "revision": None, "label": "old", "kernel": "auto"}
    named = {"name": "checkpoint", "label": "old", "options": options}
    renamed = [replace(r, cell={**r.cell, "quantization": named}) for r in records[:1]]
    edit(folder, ("  - gguf: Q8_0\n", "  - checkpoint: {path: w, label: new}\n"))
    (found,) = as_kept_spec_says(renamed, folder)
    assert found.cell["quantization"]["label"] == "new"
    now = {**named, "label": "new", "options": {**options, "label": "new"}}
    fresh = replace(renamed[0], key="z", cell={**renamed[0].cell, "quantization": now})
    (row,) = build_table(as_kept_spec_says([*renamed, fresh], folder)).rows
    assert row.quantization == "new"


def test_what_the_spec_has_no_more_comes_last(folder):
    edit(folder, ("  - rtn: {num_bits: 8}\n", ""), ("baseline: RTN W8A16\n", "baseline: Q8_0\n"))
    assert shown(folder) == (["RTN W4A16g32", "Q8_0", "RTN W8A16"], ["Q8_0"], COLUMNS)


def test_a_spec_of_other_models_says_nothing_about_these(folder):
    edit(folder, ("models: [m]", "models: [other]"))
    assert shown(folder) == (ROWS, ROWS[:1], COLUMNS)


def test_an_option_that_came_later_has_its_default_in_old_records(folder):
    edit(folder, ("baseline: RTN W8A16", "baseline: Q8_0"))
    bare = [
        replace(r, cell={**r.cell, "quantization": {**r.cell["quantization"], "options": options}})
        for r, options in zip(Store(folder).read()[::2], ({"num_bits": 8}, {}, {}), strict=True)
    ]
    assert [r.cell["baseline"] for r in as_kept_spec_says(bare[:1], folder)] == [False]


@pytest.mark.parametrize("text", ["", "name: [", "name: t\nmodels: [m]\n", "quantizations: [magic]"])
def test_a_spec_that_cannot_be_read_says_nothing(folder, text):
    (folder / "spec.yaml").write_text(text)
    assert shown(folder) == (ROWS, ROWS[:1], COLUMNS)


def test_no_spec_says_nothing(folder):
    (folder / "spec.yaml").unlink()
    assert shown(folder) == (ROWS, ROWS[:1], COLUMNS)


def test_a_limit_of_the_command_line_changes_no_place(folder):
    """`--limit` is not in the spec that is kept."""
    edit(folder, ("baseline: RTN W8A16", "baseline: Q8_0"))
    limited = [replace(r, cell={**r.cell, "limit": 1}) for r in Store(folder).read()]
    found = as_kept_spec_says(limited, folder)
    assert [r.cell["order"] for r in found] == [r.cell["order"] for r in limited]
    assert {r.cell["baseline"] for r in found} == {True, False}


def without(folder: Path, *labels: str) -> dict[tuple[str, str], str]:
    """The table's word in every cell, after the records of PTB of these rows are gone."""
    store = Store(folder)
    kept = [
        record
        for record in store.read()
        if (record.cell["quantization"]["label"], record.cell["task"]["label"])
        not in {(label, "gptq/ptb") for label in labels}
    ]
    store.path.unlink()
    for record in kept:
        store.append(record)
    table = build_table(read_results([folder]))
    return {
        (r.quantization, c.protocol): r.entries[c.id].status for r in table.rows for c in table.columns
    }


def test_a_cell_without_a_record_is_what_the_plan_says(folder):
    """To be run while the spec has it, and nothing once it has not."""
    found = without(folder, "Q8_0")
    assert found["Q8_0", "gptq/ptb"] == "…" and found["RTN W8A16", "gptq/ptb"] == ""
    edit(folder, ("[wikitext2, ptb]", "[wikitext2]"))
    assert without(folder)["Q8_0", "gptq/ptb"] == "–"
    edit(folder, ("[wikitext2]", "[wikitext2, ptb]"), ("  - gguf: Q8_0\n", ""))
    assert without(folder)["Q8_0", "gptq/ptb"] == "–"
    (folder / "spec.yaml").unlink()
    assert without(folder)["Q8_0", "gptq/ptb"] == "…"


def test_a_cell_that_the_plan_skips_is_skipped_before_it_has_a_record(folder):
    edit(folder, ("  - perplexity:", "  - tensor_stats: {dataset: wikitext2}\n  - perplexity:"))
    record = Store(folder).read()[0]
    asked = {"name": "tensor_stats", "label": "gptq/wikitext2", "options": {"dataset": "wikitext2"}}
    metric = Metric("sqnr_weight", 20.0, "stats/wikitext2", "dB")
    cell = {**record.cell, "task": asked}
    Store(folder).append(Record("eval", "s", cell, "ok", (metric,)))
    table = build_table(read_results([folder]))
    [column] = [c for c in table.columns if c.name == "sqnr_weight"]
    q8, w4 = (
        next(r for r in table.rows if r.quantization == name) for name in ("Q8_0", "RTN W4A16g32")
    )
    assert q8.entries[column.id].status == "skipped" and w4.entries[column.id].status == "…"
    [note] = q8.entries[column.id].notes
    assert table.footnotes[note - 1] == "skipped: the engine llamacpp offers no tensors"
