"""Texts by name: row forms, the order of search, identity, and one clear line for every fault."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qeval.core.errors import DataError
from qeval.data import datasets as data
from qeval.data.datasets import Corpus, DataSource, documents_sha256, manifest
from qeval.data.files import read_rows
from qeval.data.manage import encode, fetch, list_datasets, verify


@pytest.fixture(autouse=True)
def no_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No data directory of the machine, and no hub: a test that would ask it fails."""
    monkeypatch.delenv("QEVAL_DATA_DIR", raising=False)

    def unreachable(hub: data.Hub, file: str) -> Path:
        raise AssertionError("a test asked the hub")

    monkeypatch.setattr(data, "_hub_file", unreachable)


@pytest.fixture
def from_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[object, ...]]:
    """A hub whose files hold an empty row and " a"; what it was asked for."""
    asked: list[tuple[object, ...]] = []

    def give(hub: data.Hub, file: str) -> Path:
        asked.append((hub.path, file, hub.revision))
        put(tmp_path / "from the hub", file, "", " a \n")
        return tmp_path / "from the hub" / file

    monkeypatch.setattr(data, "_hub_file", give)
    return asked


def put(folder: Path, path: str, *documents: str) -> None:
    """The documents as a dataset file under the folder."""
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(encode(file, documents))


def entry(**changes: object) -> data.Dataset:
    fields: dict[str, object] = {
        "name": "some",
        "about": "",
        "rows": 2,
        "sha256": documents_sha256(("", " a \n")),
        "licence": "",
        "redistribute": True,
        "files": (data.LocalFile("some/wiki.raw"), data.LocalFile("some/rows.json")),
        "hub": data.Hub("org/some", ("config/test.raw",), "a1b2c3"),
    }
    return data.Dataset(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def some(monkeypatch: pytest.MonkeyPatch) -> data.Dataset:
    monkeypatch.setattr(data, "manifest", lambda: {"some": entry()})
    monkeypatch.setattr("qeval.data.manage.manifest", lambda: {"some": entry()})
    return entry()


# Rows

wiki_rows = st.lists(
    st.one_of(st.just(""), st.text(min_size=1).map(lambda s: f" = {s.replace(chr(10), '')} \n"))
)


@given(wiki_rows)
def test_wikitext_rows_survive_the_raw_file(tmp_path_factory: pytest.TempPathFactory, rows: list[str]):
    path = tmp_path_factory.mktemp("w") / "wiki.test.raw"
    path.write_bytes(encode(path, tuple(rows)))
    assert read_rows(path) == tuple(rows)


@given(st.lists(st.text()))
def test_jsonl_and_gz_rows_survive_the_file(tmp_path_factory: pytest.TempPathFactory, rows: list[str]):
    for name in ("x.jsonl", "x.json.gz"):
        path = tmp_path_factory.mktemp("j") / name
        path.write_bytes(encode(path, tuple(rows)))
        assert read_rows(path) == tuple(rows)


def test_ptb_lines_lose_their_outer_spaces_and_keep_unk_and_n(tmp_path: Path):
    path = tmp_path / "ptb.valid.txt"
    path.write_text(" the <unk> rose N N \n no it was n't \n")
    assert read_rows(path) == ("the <unk> rose N N", "no it was n't")


def test_parquet_rows(tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "0000.parquet"
    pq.write_table(pa.table({"sentence": ["a", "b"], "n": [[1], [2, 3]]}), path)
    assert read_rows(path, "sentence") == ("a", "b")
    assert read_rows(path, None) == ('{"n": [1], "sentence": "a"}', '{"n": [2, 3], "sentence": "b"}')
    with pytest.raises(DataError, match=r"0000\.parquet: not a parquet file with a column 'text'"):
        read_rows(path, "text")
    with pytest.raises(DataError, match=r"0000\.parquet: row 1: 'n' must be a string, not \[1\]"):
        read_rows(path, "n")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"0000\.parquet: not a parquet file"):
        read_rows(path, None)


def test_the_digest_sees_where_documents_end():
    assert documents_sha256(["ab", "c"]) != documents_sha256(["a", "bc"]) != documents_sha256(["abc"])
    # printf 'a\0b' | sha256sum
    assert documents_sha256(["a", "b"]).startswith("59b271ae1bbcb1d3")


# The real files


def test_every_real_dataset_loads_and_verifies(shared: Path):
    source = DataSource(shared / "data", offline=True)
    for name in ("wikitext2", "wikitext2-valid", "ptb", "ptb-test", "c4-excerpt", "lambada"):
        corpus = source.load(name)
        assert (len(corpus.documents), corpus.sha256) == (
            manifest()[name].rows,
            manifest()[name].sha256,
        )
    found = verify(shared / "data")
    assert {(v.status, v.message) for v in found} == {("ok", "")}
    files = {v.path.relative_to(shared / "data").as_posix(): v.file_sha256 for v in found}
    known = {f.path: f.sha256 for e in manifest().values() for f in e.files}
    assert all(known[path] == sha256 for path, sha256 in files.items())


def test_raw_wikitext_splits_into_exactly_the_dataset_rows(shared: Path):
    for split in ("test", "valid"):
        rows = json.loads((shared / f"data/wikitext2/rows_{split}.json").read_text(encoding="utf-8"))
        raw = shared / f"data/wikitext2/wiki.{split}.raw"
        assert list(read_rows(raw)) == rows
        assert encode(raw, tuple(rows)) == raw.read_bytes()


def test_what_fetch_writes_are_the_published_bytes(shared: Path):
    for path in ("ptb/ptb.valid.txt", "ptb/ptb.test.txt", "lambada/lambada_test.jsonl"):
        file = shared / "data" / path
        assert encode(file, read_rows(file)) == file.read_bytes()


def test_pydoc_is_on_every_machine():
    corpus = DataSource(offline=True).load("pydoc")
    assert corpus.name == "pydoc" and "CPython 3." in corpus.origin
    assert len(corpus.documents) > 50 and sum(map(len, corpus.documents)) > 300_000
    assert all(type(document) is str and document for document in corpus.documents)
    assert corpus.sha256 == DataSource().load("pydoc").sha256


# The order of search


def test_data_directory_then_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, some: data.Dataset
):
    put(tmp_path, "some/wiki.raw", "", " a \n")
    assert DataSource(tmp_path).load("some").origin == str(tmp_path / "some/wiki.raw")
    monkeypatch.setenv("QEVAL_DATA_DIR", str(tmp_path))
    assert DataSource().load("some").documents == ("", " a \n")


def test_second_file_form_is_found(tmp_path: Path, some: data.Dataset):
    (tmp_path / "some").mkdir()
    (tmp_path / "some/rows.json").write_text('["", " a \\n"]')
    assert DataSource(tmp_path).load("some").documents == ("", " a \n")


def test_hub_is_asked_last_for_the_pinned_files(
    tmp_path: Path, some: data.Dataset, from_hub: list[tuple[object, ...]]
):
    assert DataSource(tmp_path).load("some").origin == "hub org/some config/test.raw @a1b2c3"
    assert from_hub == [("org/some", "config/test.raw", "a1b2c3")]
    put(tmp_path, "some/wiki.raw", "", " a \n")
    assert DataSource(tmp_path).load("some").origin == str(tmp_path / "some/wiki.raw")
    assert len(from_hub) == 1


def test_offline_names_the_places_and_never_asks(tmp_path: Path, some: data.Dataset):
    with pytest.raises(
        DataError, match=r"has none of some/wiki\.raw, some/rows\.json; run `qeval data fetch"
    ):
        DataSource(tmp_path, offline=True).load("some")
    with pytest.raises(DataError, match="no data directory was given"):
        DataSource(offline=True).load("some")


# Faults


def test_another_text_is_refused_under_the_name(tmp_path: Path, some: data.Dataset):
    put(tmp_path, "some/wiki.raw", "", " b \n")
    with pytest.raises(DataError) as caught:
        DataSource(tmp_path).load("some")
    message = str(caught.value)
    assert documents_sha256(("", " b \n")) in message and some.sha256 in message  # both hashes
    assert "file:PATH" in message
    assert [v.status for v in verify(tmp_path)] == ["wrong"]


def test_a_wrong_row_count_is_refused_where_no_sha256_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(data, "manifest", lambda: {"some": entry(sha256=None, rows=3)})
    put(tmp_path, "some/wiki.raw", "", " b \n")
    with pytest.raises(DataError, match="2 documents, expected 3"):
        DataSource(tmp_path).load("some")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("some/wiki.raw", b"", "dataset 'some' is empty"),
        ("some/wiki.raw", b"a\xff\n", r"wiki\.raw: not UTF-8 text \(byte 1\)"),
        ("some/rows.json", b"{}", r"rows\.json: must be a JSON list of strings"),
        ("some/rows.json", b"[", r"rows\.json: not JSON"),
    ],
)
def test_unreadable_files(tmp_path: Path, some: data.Dataset, file: str, content: bytes, message: str):
    (tmp_path / "some").mkdir()
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=message):
        DataSource(tmp_path).load("some")


def test_a_truncated_gz_is_one_line(tmp_path: Path):
    path = tmp_path / "x.json.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n' * 100)[:-12])
    with pytest.raises(DataError, match=r"x\.json\.gz: cannot be read"):
        read_rows(path)


def test_unknown_name_suggests_and_missing_directory_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="unknown dataset 'wikitext'; did you mean 'wikitext2'"):
        DataSource().load("wikitext")
    with pytest.raises(DataError, match="nowhere does not exist: correct --data-dir"):
        DataSource(tmp_path / "nowhere").load("wikitext2")


# file:PATH


def test_own_text_is_one_document_with_its_line_ends(tmp_path: Path):
    path = tmp_path / "notes.txt"
    path.write_bytes(b"one\r\n\ntwo")
    corpus = DataSource().load(f"file:{path}")
    assert corpus == Corpus(
        f"file:{path}", ("one\r\n\ntwo",), documents_sha256(["one\r\n\ntwo"]), str(path)
    )


def test_own_jsonl_is_a_document_a_line(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a\\u2028b", "url": ""}\n\n{"text": "c"}\n')
    assert DataSource().load(f"file:{path}").documents == ("a\u2028b", "c")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", " \n", "holds no text"),
        ("x.jsonl", '{"text": "a"}\n{"txt": "b"}\n', r"x\.jsonl:2: not a JSON object with a \"text\""),
        ("x.jsonl", "[]\n", r"x\.jsonl:1: not a JSON object"),
        ("x.jsonl", '{"text": 1}\n', r"x\.jsonl:1: \"text\" must be a string, not int"),
    ],
)
def test_own_text_faults(tmp_path: Path, name: str, content: str, message: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        DataSource().load(f"file:{tmp_path / name}")


def test_own_text_that_is_not_there():
    with pytest.raises(DataError, match="no such file"):
        DataSource().load("file:/nowhere/x.txt")


# Tables


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> data.Dataset:
    files = (data.LocalFile("t/rows.jsonl"), data.LocalFile("t/rows.json"))
    changes = {"name": "t", "rows": None, "sha256": None, "column": None, "files": files}
    found = entry(**changes, url="https://example.org/rows.jsonl")
    monkeypatch.setattr(data, "manifest", lambda: {"some": entry(), "t": found})
    monkeypatch.setattr("qeval.data.manage.manifest", lambda: {"t": found})
    return found


rows = st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text())), min_size=1)


@given(rows)
def test_a_table_is_the_same_in_every_form(tmp_path_factory: pytest.TempPathFactory, rows: list[dict]):
    folder = tmp_path_factory.mktemp("t")
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "a.json").write_text(json.dumps([dict(reversed(row.items())) for row in rows], indent=2))
    documents = read_rows(folder / "a.jsonl", None)
    assert [json.loads(document) for document in documents] == rows
    assert read_rows(folder / "a.json", None) == documents
    for name in ("b.jsonl", "b.json"):
        (folder / name).write_bytes(encode(folder / name, documents, table=True))
        assert read_rows(folder / name, None) == documents


def test_a_table_is_fetched_found_and_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: data.Dataset
):
    rows = tmp_path / "x.json"
    rows.write_text('[{"b": "ü", "a": 1}, {"a": 2}]', encoding="utf-8")
    monkeypatch.setattr(data, "_hub_file", lambda hub, file: rows)
    first = fetch("t", tmp_path)
    assert first.path.read_text(encoding="utf-8") == '{"a": 1, "b": "ü"}\n{"a": 2}\n'
    assert not fetch("t", tmp_path).downloaded
    found = DataSource(tmp_path, offline=True).table("t")
    assert found == Corpus("t", first.corpus.documents, first.corpus.sha256, str(first.path))
    assert [found.place(0), found.place(1)] == [f"{first.path}:1", f"{first.path}:2"]
    assert first.corpus.place(1) == "hub org/some config/test.raw @a1b2c3 row 2"
    assert [(v.status, v.name) for v in verify(tmp_path)] == [("unknown", "t")]


def test_a_table_is_no_text_and_says_where_it_is(tmp_path: Path, table: data.Dataset):
    with pytest.raises(DataError, match="'t' is a table of problems, not a text; known texts: some"):
        DataSource(tmp_path).load("t")
    with pytest.raises(
        DataError, match=r"save https://example\.org/rows\.jsonl there as t/rows\.jsonl"
    ):
        DataSource(tmp_path, offline=True).table("t")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("rows.jsonl", '{"a": 1}\n{"a"', r"rows\.jsonl:2: not JSON"),
        ("rows.jsonl", '{"a": 1}\n\n{"a": 1}\n', r"rows\.jsonl:2: not JSON"),
        ("rows.jsonl", '{"a": 1}\n[]\n', r"rows\.jsonl:2: not a JSON object"),
        ("rows.json", "[", r"rows\.json: not JSON"),
        ("rows.json", "[1]", r"rows\.json: must be a JSON list of objects"),
    ],
)
def test_a_malformed_table(tmp_path: Path, table: data.Dataset, file: str, content: str, message: str):
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / file).write_text(content)
    with pytest.raises(DataError, match=message):
        DataSource(tmp_path).table("t")


# list, fetch


def test_fetch_writes_the_layout_that_load_reads(
    tmp_path: Path, some: data.Dataset, from_hub: list[tuple[object, ...]]
):
    first = fetch("some", tmp_path / "new")
    assert first.downloaded and first.path == tmp_path / "new/some/wiki.raw"
    assert DataSource(tmp_path / "new", offline=True).load("some").sha256 == first.corpus.sha256
    second = fetch("some", tmp_path / "new")
    assert not second.downloaded and second.file_sha256 == first.file_sha256
    assert sorted(p.name for p in (tmp_path / "new/some").iterdir()) == ["wiki.raw"]


def test_fetch_of_what_no_hub_has(tmp_path: Path):
    with pytest.raises(DataError, match=r"'c4-excerpt' is not on the hub: put c4/c4_sample\.jsonl"):
        fetch("c4-excerpt", tmp_path)
    with pytest.raises(DataError, match="it comes with Python"):
        fetch("pydoc", tmp_path)


def test_list_says_what_a_run_would_read(tmp_path: Path):
    put(tmp_path, "ptb/ptb.valid.txt", "a")
    where = {item.entry.name: item.where for item in list_datasets(DataSource(tmp_path))}
    assert where["ptb"] == "local" and where["wikitext2"] == "hub" and where["pydoc"] == "python"
    offline = {i.entry.name: i.where for i in list_datasets(DataSource(offline=True))}
    assert offline["wikitext2"] == "missing" and list(offline) == list(manifest())


def test_importing_the_module_imports_nothing_heavy():
    code = (
        "import sys, qeval.data.manage; "
        "print([m for m in ('torch', 'datasets', 'pyarrow', 'transformers') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_text_is_read_with_limits(tmp_path, monkeypatch):
    import gzip

    from qeval.data import files as data_files

    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(b"a" * 2**25, 9))
    with pytest.raises(DataError, match=r"bomb.gz: unpacks to over 100 times its size: no text"):
        data_files.read_text(bomb)
    whole = gzip.compress(b"some text " * 1000)
    for name, packed in {
        "cut": whole[:-10],
        "crc": whole[:-8] + bytes(8),
        "junk": whole[:20] + b"\xff" * 20 + whole[40:],
        "none": b"no gzip",
    }.items():
        (tmp_path / f"{name}.gz").write_bytes(packed)
        with pytest.raises(DataError, match=f"{name}.gz: cannot be read"):
            data_files.read_text(tmp_path / f"{name}.gz")
    monkeypatch.setattr(data_files, "MOST_TEXT", 1000)
    for file, text in (("long.txt", b"x" * 1001), ("long.txt.gz", gzip.compress(b"x" * 1001))):
        (tmp_path / file).write_bytes(text)
        with pytest.raises(DataError, match=f"{file}: over 1000 B of text: take a part of it"):
            data_files.read_text(tmp_path / file)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/dev/zero", "/dev/zero: is a device: name a regular file"),
        ("FIFO", "fifo: is a pipe: name a regular file"),
        ("/tmp", "/tmp: is a folder: name a regular file"),
        ("a" * 300, "no such file"),
        ("/nope", "no such file: /nope"),
    ],
)
def test_ones_own_text_is_a_regular_file(tmp_path, path, message):
    import os

    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(DataError, match=message):
        DataSource(None).load(f"file:{fifo if path == 'FIFO' else path}")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"text": ' + "9" * 5000 + "}", "{", '{"text": '])
def test_deep_and_long_json_lines_are_one_line(tmp_path, text):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "x"}\n' + text)
    with pytest.raises(DataError, match=r"a.jsonl:2: not JSON \("):
        DataSource(None).load(f"file:{file}")
