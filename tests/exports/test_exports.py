"""What is exported is what was measured, in files that the programs they are for read."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from made_records import pass_at_1, ppl, record

import qeval
from qeval.cli.main import cli
from qeval.core.errors import MissingExtraError, UsageError
from qeval.core.record import Metric
from qeval.exports.hub import dataset_of
from qeval.exports.latex import escaped
from qeval.exports.loggers import metrics
from qeval.report.tidy import FIELDS

WINDOWS = [3.0, 3.2, 2.8, 3.1, 2.9, 3.3]
PASSED = [1.0, 0.0] * 10
HASHES = {"text_sha256": "a" * 64, "tokens_sha256": "b" * 64, "qeval": "0.1.0"}


@pytest.fixture
def folder(keep, tmp_path):
    worse = [w + 0.1 + 0.001 * i for i, w in enumerate(WINDOWS)]
    path = tmp_path / "results" / "q8.jsonl"
    path.parent.mkdir()
    lines = [{"task_id": f"HumanEval/{i}", "sample": 0, "completion": f"  # {i}"} for i in range(20)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    speed = Metric("decode_tok_s", 20.0, "speed/b1", "tok/s", low=19.0, high=21.0, n=3)
    made = {
        "details": {
            "calibration": {"dataset": "c4", "n_samples": 128},
            "library": {"name": "llama-cpp-python", "version": "0.3.36"},
        }
    }
    q8 = record("Q8_0", "perplexity", [ppl(worse)], provenance=HASHES)
    q8.artifact.update(made)
    return keep(
        [
            record("none", "perplexity", [ppl(WINDOWS)], provenance=HASHES),
            record("none", "humaneval", [pass_at_1(PASSED)]),
            record("none", "speed", [speed]),
            q8,
            record("Q8_0", "humaneval", [pass_at_1([0.0, *PASSED[1:]])], files={"samples": "q8.jsonl"}),
            record("RTN W4", "perplexity", [ppl(worse)], limit=3, provenance=HASHES),
        ]
    )


def run(*args):
    cli([str(arg) for arg in args], standalone_mode=False)


def test_csv_and_parquet_are_the_tidy_lines(folder, tmp_path, capsys):
    lines = qeval.load(folder).tidy()
    run("convert", folder, "--to", "csv")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert list(rows[0]) == list(FIELDS) and len(rows) == len(lines)
    for row, line in zip(rows, lines, strict=True):
        assert row["metric"] == (line["metric"] or "")
        assert (float(row["value"]) if row["value"] else None) == line["value"]
    pq = pytest.importorskip("pyarrow.parquet")
    run("convert", folder, "--to", "parquet", "-o", tmp_path / "x" / "all.parquet")
    assert pq.read_table(tmp_path / "x" / "all.parquet").to_pylist() == lines
    run("convert", folder, "--to", "csv", "--row", "q8_0", "-o", tmp_path / "q8.csv")
    q8 = io.StringIO((tmp_path / "q8.csv").read_text())
    assert {r["row"] for r in csv.DictReader(q8)} == {"Q8_0"}


def test_files_without_a_place_and_rows_that_are_none_get_one_line(folder, monkeypatch):
    with pytest.raises(UsageError, match="give -o PATH"):
        run("convert", folder, "--to", "parquet")
    with pytest.raises(UsageError, match="no row is called 'Q9'"):
        run("convert", folder, "--to", "csv", "--row", "Q9")
    with pytest.raises(UsageError, match="a card is of one row: give --row, one of 'none', 'Q8_0'"):
        run("convert", folder, "--to", "model-card")
    monkeypatch.setattr("qeval.core.extras.find_spec", lambda name: None)
    for form, extra in (("parquet", "parquet"), ("eval-results", "hub")):
        with pytest.raises(MissingExtraError, match=rf"qeval\[{extra}\]"):
            run("convert", folder, "--to", form, "-o", folder / "x")
    with pytest.raises(MissingExtraError, match=r"qeval\[mlflow\]"):
        run("log", folder, "--to", "mlflow")


def test_latex_is_balanced_and_has_every_number(folder, capsys):
    run("convert", folder, "--to", "latex")
    text = capsys.readouterr().out
    assert text == qeval.load(folder).table().to("latex")
    begun, ended = (re.findall(rf"\\{word}{{(\w+)}}", text) for word in ("begin", "end"))
    assert sorted(begun) == sorted(ended) and text.isascii()
    rows = [line for line in text.split("\n") if line.endswith(r"\\") and " & " in line]
    assert len({len(re.findall(r"(?<!\\)&", line)) for line in rows}) == 1
    assert "Q8\\_0" in text and "21.12 $\\pm$" in text


@given(st.text())
def test_no_text_breaks_latex(text):
    """What is left when the escapes are taken out has no special character."""
    plain = re.sub(r"\\text\w+(\{\d*\})|\\dots\{\}|\$\\\w+\$|\\[&%$#_{}]", "", escaped(text))
    assert not set(plain) & set("&%$#_{}~^\\<>|")


@pytest.mark.parametrize(
    ("protocol", "found"),
    [
        ("gptq/wikitext2", "Salesforce/wikitext wikitext-2-raw-v1"),
        ("kl/llamacpp/wikitext2@256", "Salesforce/wikitext wikitext-2-raw-v1"),
        ("humaneval/instruct/greedy", "openai/openai_humaneval openai_humaneval"),
        ("mbpp-sanitized/base/greedy", "google-research-datasets/mbpp sanitized"),
        ("gptq/pydoc", None),
        ("gptq/file:mine.txt", None),
        ("speed/b1", None),
        (None, None),
    ],
)
def test_protocols_name_their_dataset_of_the_hub(protocol, found):
    dataset = dataset_of(protocol)
    assert (f"{dataset.id} {dataset.task}" if dataset else None) == found


def test_eval_results_are_what_the_hubs_library_reads(folder, tmp_path, capsys):
    hub = pytest.importorskip("huggingface_hub")
    run("convert", folder, "--to", "eval-results", "--row", "Q8_0", "-o", tmp_path / "repo")
    files = sorted((tmp_path / "repo" / ".eval_results").iterdir())
    assert [f.name for f in files] == ["openai_humaneval.yaml", "wikitext.yaml"]
    (code,), (text,) = (hub.parse_eval_result_entries(yaml.safe_load(f.read_text())) for f in files)
    assert (code.dataset_id, code.task_id, code.value) == (
        "openai/openai_humaneval",
        "openai_humaneval",
        0.45,
    )
    assert text.dataset_revision and "protocol gptq/wikitext2; 95% interval [" in text.notes
    with pytest.raises(
        UsageError, match="RTN W4: nothing of it was measured on the whole of a dataset"
    ):
        run("convert", folder, "--to", "eval-results", "--row", "RTN W4", "-o", tmp_path / "repo")


def test_the_card_is_one_that_the_hubs_library_reads_and_has_method_numbers_and_command(
    folder, tmp_path, capsys
):
    hub = pytest.importorskip("huggingface_hub")
    run("convert", folder, "--to", "model-card", "--row", "Q8_0")
    card = hub.ModelCard(capsys.readouterr().out)
    assert card.data.base_model == "org/model" and "quantized" in card.data.tags
    found = {r.metric_type: r.metric_value for r in card.data.eval_results}
    assert found["pass@1"] == 0.45 and found["perplexity"] == pytest.approx(23.45, abs=0.1)
    assert "- method: gguf (type=Q8_0)" in card.text
    assert "- calibration: dataset c4, n_samples 128" in card.text
    assert "- made by: llama-cpp-python 0.3.36" in card.text
    assert re.search(r"\| ppl \| gptq/wikitext2 \| 23\.\d+ \| \[.*\] \| 6 \| \+10.8% \[", card.text)
    spec = yaml.safe_load(re.search(r"```yaml\n(.*?)```", card.text, re.DOTALL)[1])
    assert spec["quantizations"] == ["none", {"gguf": {"type": "Q8_0"}}]
    assert spec["tasks"] == ["perplexity", "humaneval"]


def test_a_card_names_no_path_of_this_machine_and_asks_for_every_dataset_and_slice(keep):
    from qeval.exports.card import card
    from qeval.exports.rows import export_rows

    made = [
        record("none", "perplexity", [ppl(WINDOWS, f"gptq/{name}")], model="/home/me/my-model", limit=4)
        for name in ("ptb", "c4")
    ]
    made = [
        replace(r, key=name, cell={**r.cell, "task": {**r.cell["task"], "options": {"dataset": name}}})
        for r, name in zip(made, ("ptb", "c4"), strict=True)
    ]
    text = card(export_rows(made)[0])
    assert "/home" not in text.replace(made[0].cell["model"]["identity"], "") and "# my-model" in text
    assert "base_model" not in text and "quantized\n" not in text
    spec = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    assert spec["models"] == ["my-model"]
    assert spec["tasks"] == [{"perplexity": {"dataset": n, "limit": 4}} for n in ("ptb", "c4")]


def test_lm_evals_files_come_back_as_what_they_were(folder, tmp_path):
    """Numbers, intervals, paired differences and completions, through lm-eval's format and back."""
    run("convert", folder, "--to", "lm-eval", "-o", tmp_path / "out")
    ours, back = qeval.load(folder), qeval.load(tmp_path / "out")
    theirs = back.table(baseline="model none (lm-eval)")
    for column in ours.table().columns:
        if column.kind == "metric" and column.unit != "tok/s":
            one, other = (
                {
                    r.quantization.removeprefix("model ").removesuffix(" (lm-eval)"): r.entries[
                        column.id
                    ]
                    for r in t.rows
                }
                for t in (ours.table(), theirs)
            )
            for name in ("none", "Q8_0"):
                assert one[name].value == other[name].value and one[name].low == other[name].low
                assert one[name].difference == other[name].difference
    (flips,) = back.compare("model none (lm-eval)", "model Q8_0 (lm-eval)").rows[0].flips
    assert [(f.unit, f.b.completion) for f in flips.flips] == [("HumanEval/0", "  # 0")]
    together = qeval.load(folder, tmp_path / "out").compare("none", "model none (lm-eval)")
    assert {m.difference.value for m in together.rows[0].metrics if m.difference} == {
        0.0,
        1.0,
    }  # 1: ratios


def test_lm_evals_own_tools_read_the_files(folder, tmp_path):
    """`make_table` and the functions that find files for its upload; run where lm-eval is there."""
    utils = pytest.importorskip("lm_eval.utils")
    run("convert", folder, "--to", "lm-eval", "-o", tmp_path / "out")
    names = [str(p) for p in sorted(tmp_path.rglob("*Q8_0/*.json*"))]
    (results,) = utils.get_results_filenames(names)
    samples = utils.get_sample_results_filenames(names)
    data = json.loads(Path(results).read_text())
    assert {utils.get_file_task_name(Path(s).name) for s in samples} <= set(data["results"])
    assert {utils.get_file_datetime(Path(s).name) for s in samples} == {
        Path(results).stem.removeprefix("results_")
    }
    table = utils.make_table(data)
    assert re.search(r"\|gptq/wikitext2 *\| *1\|none *\| *0\|perplexity\|↓ *\|23\.\d+\|± *\|", table)
    assert re.search(r"pass@1 *\|↑ *\| *0\.4500\|", table)


def test_loggers_get_every_number_and_setting(folder):
    row = qeval.load(folder).rows()[1]
    found = metrics(row)
    assert found["pass@1 humaneval/base/greedy"] == 0.45
    assert found["pass@1 humaneval/base/greedy difference"] == pytest.approx(-0.05)
    assert found["ppl gptq/wikitext2 low"] < found["ppl gptq/wikitext2"]
    assert found["size"] == 1.3125 * 2**30


def logged(folder, tmp_path, logger, **environment):
    argv = [sys.executable, "-m", "qeval", "log", str(folder), "--to", logger, "--project", "mine"]
    done = subprocess.run(
        argv,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    assert "3 runs in the project mine" in done.stderr


@pytest.mark.real
def test_mlflow_has_the_runs_in_a_local_store(folder, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "mlruns").as_uri()
    logged(folder, tmp_path, "mlflow", MLFLOW_TRACKING_URI=uri)
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("mine")
    runs = {r.info.run_name: r.data for r in client.search_runs([experiment.experiment_id])}
    data = runs["org/model · Q8_0"]
    assert data.metrics["pass_1 humaneval/base/greedy"] == 0.45
    assert data.params["option type"] == "Q8_0" and data.params["engine"] == "llamacpp"


@pytest.mark.real
def test_wandb_keeps_the_runs_offline(folder, tmp_path):
    pytest.importorskip("wandb")
    logged(
        folder, tmp_path, "wandb", WANDB_MODE="offline", WANDB_DIR=str(tmp_path), WANDB_SILENT="true"
    )
    files = list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 3
    assert any(b"ppl gptq/wikitext2" in f.read_bytes() for f in files)


@pytest.mark.real
def test_trackio_has_the_runs_in_its_database(folder, tmp_path):
    pytest.importorskip("trackio")
    logged(folder, tmp_path, "trackio", TRACKIO_DIR=str(tmp_path / "trackio"), HF_HUB_OFFLINE="1")
    (database,) = (tmp_path / "trackio").glob("*mine*.db")
    with closing(sqlite3.connect(database)) as connection:
        found = dict(connection.execute("select run_name, metrics from metrics").fetchall())
    assert json.loads(found["org/model · Q8_0"])["pass@1 humaneval/base/greedy"] == 0.45
