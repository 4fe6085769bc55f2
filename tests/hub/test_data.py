"""Datasets from a hub: the manifest's files, their rows, `qeval data fetch`, calibration."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qeval.core.errors import DataError
from qeval.data import datasets as data
from qeval.data.calibration import CalibrationOptions, draw
from qeval.data.datasets import Dataset, DataSource, manifest
from qeval.data.files import read_rows
from qeval.data.manage import fetch

ON_THE_HUB = {name: entry for name, entry in manifest().items() if entry.hub is not None}


def parquet(path: Path, **columns: list[object]) -> bytes:
    pq.write_table(pa.table(columns), path)
    return path.read_bytes()


@pytest.fixture
def publish(hub, tmp_path):
    """Put a dataset of the manifest on the hub, at its revision, in its files' own forms."""

    def put(entry: Dataset, documents: list[str]) -> None:
        known, parts = entry.hub, len(entry.hub.files)
        files = {}
        for i, name in enumerate(known.files):
            rows = documents[i::parts] if parts == 1 else documents[i : i + 1]
            if name.endswith(".parquet") and entry.column is None:
                pq.write_table(pa.Table.from_pylist(list(map(json.loads, rows))), tmp_path / "p")
                files[name] = (tmp_path / "p").read_bytes()
            elif name.endswith(".parquet"):
                files[name] = parquet(tmp_path / "p", **{entry.column: rows})
            else:
                lines = "".join(json.dumps({"text": row, "url": ""}) + "\n" for row in rows).encode()
                files[name] = gzip.compress(lines, 1) if name.endswith(".gz") else lines
        pinned = len(known.revision or "") == 40
        refs = ("main",) if pinned else (known.revision or "main",)
        hub.dataset(known.path, files, *refs, sha=known.revision if pinned else None)

    return put


REAL = ("wikitext2", "wikitext2-valid", "ptb", "ptb-test", "lambada")


@pytest.mark.parametrize("name", REAL)
def test_the_real_texts_come_from_the_hub_under_their_sha256(publish, shared, tmp_path, name):
    entry = manifest()[name]
    here = DataSource(shared / "data", offline=True).load(name)
    publish(entry, list(here.documents))
    plan = DataSource().plan(name)
    assert [file.name for file in plan.missing] == list(entry.hub.files) and plan.n_bytes > 100_000
    corpus = DataSource().load(name)
    assert (corpus.documents, corpus.sha256) == (here.documents, entry.sha256)
    assert corpus.origin == f"hub {entry.hub}"
    assert DataSource().plan(name).missing == ()


@pytest.mark.parametrize("name", REAL)
def test_fetch_writes_the_published_bytes(publish, shared, tmp_path, offline, name):
    entry = manifest()[name]
    publish(entry, list(DataSource(shared / "data", offline=True).load(name).documents))
    got = fetch(name, tmp_path / "data")
    assert got.downloaded and got.path == tmp_path / "data" / entry.files[0].path
    assert got.file_sha256 == entry.files[0].sha256
    offline()
    assert DataSource(tmp_path / "data").load(name).sha256 == entry.sha256
    assert not fetch(name, tmp_path / "data").downloaded


def test_a_table_comes_in_the_order_of_its_files(publish):
    rows = [{"task_id": i, "text": f"t{i}", "test_list": ["a", "b"], "code": "é"} for i in range(4)]
    entry = manifest()["mbpp"]
    publish(entry, [json.dumps(row) for row in rows])
    found = DataSource().table("mbpp")
    assert [json.loads(document) for document in found.documents] == rows


def test_every_dataset_of_the_hub_is_pinned_or_known_by_its_sha256():
    """A branch may move: its text must then be refused, not measured."""
    for name, entry in ON_THE_HUB.items():
        assert len(entry.hub.revision or "") == 40 or entry.sha256 or entry.rows, name


def test_what_is_on_the_hub_has_the_right_number_of_rows(publish, tmp_path):
    entry = manifest()["c4"]
    publish(entry, ["a"] * 10)
    with pytest.raises(
        DataError, match=r"is not 'c4': 10 documents, expected 45576; remove /\S+ and run"
    ):
        fetch("c4", tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*.*"))


def test_calibration_draws_from_the_hubs_c4(publish, monkeypatch, offline):
    class Bytes:
        def encode(self, text: str) -> list[int]:
            return list(text.encode())

    entry = replace(manifest()["c4-train"], rows=400)
    monkeypatch.setattr(data, "manifest", lambda: {"c4-train": entry})
    publish(entry, ["short"] * 398 + ["x" * 200, "y" * 300])
    drawn = draw(DataSource(), Bytes(), CalibrationOptions(n_samples=4, seq_len=150))
    assert {(chr(w[0]), len(w)) for w in drawn.windows} <= {("x", 150), ("y", 150)}
    offline()
    again = draw(DataSource(), Bytes(), CalibrationOptions(n_samples=4, seq_len=150))
    assert again == drawn and drawn.facts["text_sha256"] == DataSource().load("c4-train").sha256


def test_a_text_that_nobody_gives_is_one_line_with_both_ways_out(hub, offline):
    with pytest.raises(DataError) as caught:
        DataSource().load("wikitext2")
    file = "Salesforce/wikitext wikitext-2-raw-v1/test-00000-of-00001.parquet @b08601e04326"
    assert str(caught.value) == (
        "dataset 'wikitext2' not found: no data directory was given, and the hub did not give it: "
        f"dataset {file}: no such dataset on {hub.url}, or a private one: correct the name, or set "
        "HF_TOKEN; or run `qeval data fetch wikitext2` on a machine that reaches the hub and give that "
        "folder as --data-dir (or QEVAL_DATA_DIR)"
    )
    with pytest.raises(DataError, match=r"not found: .*no such dataset"):
        DataSource().plan("wikitext2")
    offline()
    with pytest.raises(DataError, match=r"HF_HUB_OFFLINE is set and the cache .* has no copy"):
        DataSource().load("wikitext2")
    assert "HF_HUB_OFFLINE" in DataSource().plan("wikitext2").out_of_reach


def test_the_plan_of_what_is_here_is_none(hub, tmp_path):
    (tmp_path / "mine.txt").write_text("a")
    assert DataSource().plan("pydoc") is None
    assert DataSource().plan(f"file:{tmp_path}/mine.txt") is None
    for name in ("c4-excerpt", f"file:{tmp_path}/none.txt", "wikitext"):
        with pytest.raises(DataError):
            DataSource().plan(name)
    assert hub.log == []


def test_rows_are_those_of_the_datasets_library(hub, tmp_path):
    """The library that others load these files with, from the same hub."""
    pytest.importorskip("datasets")
    rows, sha = ["", " = A = \n", "b\u2028c\n", "d"], "ab" * 20
    files = {
        "parquet": parquet(tmp_path / "x.parquet", text=rows, n=[1, 2, 3, 4]),
        "jsonl": "".join(json.dumps({"text": row, "n": 1}) + "\n" for row in rows).encode(),
    }
    (tmp_path / "x.jsonl").write_bytes(files["jsonl"])
    for form, content in files.items():
        hub.dataset(f"org/{form}", {f"data/test.{form}": content}, sha=sha)
    load = f"datasets.load_dataset('org/' + form, split='test', revision={sha!r})['text']"
    code = (
        f"import datasets, json; found = [list({load}) for form in {list(files)}]; "
        "print(json.dumps(found))"
    )
    env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf2"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [rows, rows]
    assert read_rows(tmp_path / "x.parquet") == read_rows(tmp_path / "x.jsonl") == tuple(rows)
