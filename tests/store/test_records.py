"""The results folder under torn lines, full disks, newer versions and second runs."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qeval.core.errors import StoreError
from qeval.core.record import SCHEMA_VERSION, MemoryReport, Metric, Record, completed
from qeval.store.records import Store, latest, read_many

METRIC = completed(
    Metric("ppl", 21.62, "gptq/wikitext2", stderr=0.1, n=2, values=(3.0, None), units=("a", "b"))
)
RECORD = Record("eval", "k1", {"task": {"name": "é"}}, "ok", (METRIC,), MemoryReport(weights=7))


def python(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_round_trip_keeps_every_field(tmp_path):
    store = Store(tmp_path / "new" / "folder")
    store.append(RECORD)
    store.append(replace(RECORD, key="k2", error="a\nb\udc80"))
    assert store.read() == [RECORD, replace(RECORD, key="k2", error="a\nb\udc80")]
    assert store.warnings == []


def test_a_number_that_is_not_finite_is_written_as_null(tmp_path):
    Store(tmp_path).append(replace(RECORD, timing={"wall_s": float("inf")}))
    assert "Infinity" not in (tmp_path / "records.jsonl").read_text()
    assert Store(tmp_path).read()[0].timing == {"wall_s": None}


def test_nothing_written_yet_reads_as_nothing(tmp_path):
    assert Store(tmp_path).read() == []
    assert Store(tmp_path / "absent").read() == []


@given(cut=st.integers(min_value=1))
def test_a_line_torn_anywhere_loses_only_itself(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("torn")
    store = Store(folder)
    store.append(RECORD)
    whole = store.path.stat().st_size
    store.append(replace(RECORD, key="k2"))
    size = store.path.stat().st_size
    left = whole + cut % (size - whole)  # at least nothing and at most all but the newline is left
    os.truncate(store.path, left)
    complete = left == size - 1
    assert [r.key for r in store.read()] == ["k1", "k2"][: 1 + complete]
    assert len(store.warnings) == (left > whole and not complete)
    store.append(replace(RECORD, key="k3"))
    assert [r.key for r in store.read()][-1] == "k3"
    assert len(store.read()) == 2 + complete


def test_torn_line_is_named(tmp_path):
    store = Store(tmp_path)
    store.append(RECORD)
    with store.path.open("a") as file:
        file.write('{"schema_version": 1, "ki')
    assert store.read() == [RECORD]
    assert store.warnings == [f"{store.path}: line 2 was cut off while it was written: ignored"]


@pytest.mark.parametrize(
    ("garbage", "what"),
    [
        (b"\x00\xff\x00garbage", "is not a JSON record"),
        (b'{"schema_version": 1, "value": NaN}', "is not a JSON record"),
        (b"[" * 100_000, "is not a JSON record"),
        (b"3", "is not a qeval record (not an object)"),
        (b"{}", "is not a qeval record (no schema_version)"),
        (b'{"schema_version": 1}', "is not a qeval record"),
        (b'{"schema_version":1,"kind":"eval","key":"k","cell":null,"status":"ok"}', "wrong type"),
    ],
)
def test_garbage_in_the_middle_is_a_warning_with_file_and_line(tmp_path, garbage, what):
    store = Store(tmp_path)
    store.append(RECORD)
    with store.path.open("ab") as file:
        file.write(garbage + b"\n")
    store.append(replace(RECORD, key="k2"))
    assert [r.key for r in store.read()] == ["k1", "k2"]
    [warning] = store.warnings
    assert warning.startswith(f"{store.path}: line 2 ")
    assert what in warning
    store.read()
    assert len(store.warnings) == 1


def test_newer_schema_is_an_error_with_file_line_versions_and_fix(tmp_path):
    store = Store(tmp_path)
    store.append(RECORD)
    newer = {**RECORD.to_json(), "schema_version": SCHEMA_VERSION + 1, "new_field": 1}
    with store.path.open("a") as file:
        file.write(json.dumps(newer) + "\n")
    with pytest.raises(StoreError) as caught:
        store.read()
    assert str(caught.value) == (
        f"{store.path}: line 2 has schema version {SCHEMA_VERSION + 1}, this qeval reads up to "
        f"{SCHEMA_VERSION}: pip install --upgrade qeval"
    )


def test_a_disk_that_fills_up_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.append(RECORD)
    before = store.path.read_bytes()
    real = os.write
    written = []

    def full(fd: int, data: bytes) -> int:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(real(fd, data[:10]))
        return 10

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StoreError) as caught:
        store.append(replace(RECORD, key="k2"))
    monkeypatch.undo()
    assert str(caught.value) == (
        f"cannot write to the results folder {tmp_path}: no space left on the device: "
        "free some (`qeval cache list`) and run again"
    )
    assert written == [10]
    assert store.path.read_bytes() == before
    store.append(replace(RECORD, key="k3"))
    assert [r.key for r in store.read()] == ["k1", "k3"]


def test_a_real_limit_of_the_file_size_tears_nothing(tmp_path):
    code = """
        import resource, sys
        from qeval.core.errors import StoreError
        from qeval.core.record import Record
        from qeval.store.records import Store
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        store = Store(sys.argv[1])
        try:
            for i in range(100):
                store.append(Record("eval", f"k{i}", {}, "ok"))
        except StoreError as err:
            print(err)
        print(len(store.read()), store.path.read_bytes().endswith(b"}\\n"), store.warnings)
    """
    done = python(code, tmp_path)
    message, state = done.stdout.splitlines()
    assert message.startswith(f"cannot write to the results folder {tmp_path}: File too large")
    assert state.split()[1:] == ["True", "[]"]
    assert 1 <= int(state.split()[0]) < 100


@pytest.mark.parametrize(
    ("code", "word"), [(errno.EROFS, "read-only: choose"), (errno.EACCES, "permission denied: choose")]
)
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, code, word):
    def refuse(*args: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StoreError, match=word) as caught:
        Store(tmp_path).append(RECORD)
    assert str(caught.value).startswith(f"cannot write to the results folder {tmp_path}: ")
    with pytest.raises(StoreError, match="cannot lock the results folder"), Store(tmp_path).lock():
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="permission denied: choose a folder"):
        Store(tmp_path).append(RECORD)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(
            StoreError, match=r"cannot create the results folder .*(File exists|is a file)"
        ):
            Store(folder).append(RECORD)


def test_a_second_process_is_kept_out_and_told_who_is_in(tmp_path):
    code = """
        import sys
        from qeval.core.errors import StoreError
        from qeval.store.records import Store
        try:
            with Store(sys.argv[1]).lock():
                print("got it")
        except StoreError as err:
            print(err)
    """
    with Store(tmp_path).lock():
        refused = python(code, tmp_path).stdout
    assert refused.startswith(f"another qeval run (pid {os.getpid()} on host ")
    assert refused.endswith(f") is using {tmp_path}: wait for it or use another folder\n")
    assert python(code, tmp_path).stdout == "got it\n"


def test_a_killed_holder_lets_go(tmp_path):
    code = """
        import os, sys
        from qeval.store.records import Store
        with Store(sys.argv[1]).lock():
            os.kill(os.getpid(), 9)
    """
    assert python(code, tmp_path).returncode == -9
    with Store(tmp_path).lock():
        Store(tmp_path).append(RECORD)


def test_the_last_ok_record_of_a_key_wins_else_the_last(tmp_path):
    old, new = replace(RECORD, notes=("old",)), replace(RECORD, notes=("new",))
    failed = replace(RECORD, status="failed", error="1")
    other = replace(failed, key="k2", error="2")
    again = replace(other, status="oom")
    assert latest([old, new, failed]) == {"k1": new}
    assert latest([failed, new]) == {"k1": new}
    assert latest([failed, other, again]) == {"k1": failed, "k2": again}
    store = Store(tmp_path)
    for record in (old, new, failed):
        store.append(record)
    assert store.latest() == {"k1": new}


def test_read_many_joins_folders_and_their_warnings(tmp_path):
    for name in ("a", "b"):
        Store(tmp_path / name).append(replace(RECORD, key=name))
    with (tmp_path / "a" / "records.jsonl").open("a") as file:
        file.write("{")
    records, warnings = read_many([tmp_path / "a", tmp_path / "b"])
    assert [r.key for r in records] == ["a", "b"]
    assert len(warnings) == 1


def test_reading_what_is_not_there_names_the_folder(tmp_path):
    with pytest.raises(StoreError, match=r"absent does not exist: name the folder of a `qeval run`"):
        read_many([tmp_path / "absent"])
    with pytest.raises(StoreError, match=r"no records in .*records.jsonl: fill it with `qeval run`"):
        read_many([tmp_path])
    (tmp_path / "records.jsonl").write_text("garbage\n")
    with pytest.raises(StoreError, match=r"no records in .*line 1 is not a JSON record"):
        read_many([tmp_path])
    with pytest.raises(StoreError, match="is a file"):
        read_many([tmp_path / "records.jsonl"])


def test_a_records_file_that_is_a_folder(tmp_path):
    (tmp_path / "records.jsonl").mkdir()
    with pytest.raises(StoreError, match=r"cannot read .*records.jsonl: Is a directory"):
        Store(tmp_path).read()


@pytest.mark.parametrize("umask", [0o002, 0o077])
def test_a_results_folder_has_the_permissions_that_its_owners_umask_says(tmp_path, umask):
    before = os.umask(umask)
    try:
        store = Store(tmp_path / "shared")
        with store.lock():
            store.append(RECORD)
    finally:
        os.umask(before)
    modes = {p.name: p.stat().st_mode & 0o777 for p in (tmp_path / "shared").iterdir()}
    assert modes == dict.fromkeys(("lock", "records.jsonl"), 0o666 & ~umask)
