"""Lines that anybody may have written: every fault is one line that names the place, and no file takes
all memory or all time."""

import gzip
import json
import os
import random
import resource
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qeval.core import jsonl
from qeval.core.errors import DataError
from qeval.core.jsonl import lines, parsed

GOOD = b'{"task_id": "HumanEval/0", "completion": "    return False\\n"}\n'


def test_blank_lines_are_passed_over_and_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf\n1\r\n\n  \n2\r3")  # a BOM; the ends of three systems
    assert [(n, text.strip()) for n, text in lines(path)] == [(2, "1"), (5, "2"), (6, "3")]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_packed_file_is_known_by_its_content(tmp_path, name):
    path = tmp_path / name
    for data in (GOOD * 3, gzip.compress(GOOD * 3), gzip.compress(GOOD) + gzip.compress(GOOD * 2)):
        path.write_bytes(data)
        assert [n for n, _ in lines(path)] == [1, 2, 3]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_a_damaged_packed_file_is_an_error_of_one_line_or_its_text(tmp_path_factory, seed, flips):
    draw = random.Random(seed)
    data = bytearray(gzip.compress(GOOD * 50, mtime=0))
    if flips == 4:
        data = data[: draw.randrange(2, len(data))]
    for _ in range(flips):
        data[draw.randrange(2, len(data)) if len(data) > 2 else 1] ^= 1 << draw.randrange(8)
    path = tmp_path_factory.getbasetemp() / "damaged.gz"
    path.write_bytes(data)
    try:
        list(lines(path))
    except DataError as err:
        assert str(err).startswith(f"{path}") and len(str(err).splitlines()) == 1


LIMITS = {  # packed: what it holds, which limit is hit
    "a line": (b"a" * 3000, "MAX_LINE", r":1: a line of over 1,000 characters; remove it"),
    "a late line": (b"1\n" * 9 + b"a" * 3000, "MAX_LINE", r":10: a line of over"),
    "blank lines": (b"\n" * 3000, "MAX_BLANK", r":1001: over 1,000 empty lines; remove them"),
    "all of it": (b"1\n" * 200_000, "MAX_UNPACKED", r": unpacks to over 1000 B; .*gunzip it first"),
}


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_is_named(tmp_path, monkeypatch, name):
    data, limit, message = LIMITS[name]
    monkeypatch.setattr(jsonl, limit, 1000)
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(data))
    with pytest.raises(DataError, match=message):
        list(lines(path))


def test_a_bomb_takes_little_memory(tmp_path):
    """1 GiB in one line, in 1 MB; half a GiB are more than the process has besides."""
    path = tmp_path / "bomb.gz"
    path.write_bytes(64 * gzip.compress(b"a" * (1 << 24), 1))
    code = (
        "import sys, pathlib, qeval.core.jsonl; list(qeval.core.jsonl.lines(pathlib.Path(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29)),
    )
    assert done.stderr.splitlines()[-1].endswith("a line of over 33,554,432 characters; remove it")


OTHERS = {
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_regular_file_is_not_opened(tmp_path, name):
    OTHERS[name](tmp_path / "x")
    with pytest.raises(DataError, match=r"x: is a (pipe|folder|device): name a regular file"):
        list(lines(tmp_path / "x"))


BAD = {
    "deep list": ("[" * 100_000, "nested too deeply"),
    "deep object": ('{"a":' * 100_000, "nested too deeply"),
    "deep and closed": ('{"z": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    "digits": ('{"z": ' + "9" * 5000 + "}", "a number of more than 4,300 digits"),
    "no JSON": ("hello", "Expecting value at column 1"),
    "two": ("1 2", "Extra data at column 3"),
    "bytes": (b"\xff1", "not UTF-8: invalid start byte"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_json_says_why(name):
    text, reason = BAD[name]
    with pytest.raises(DataError) as caught:
        parsed(text, "f.jsonl:3")
    assert str(caught.value) == f"f.jsonl:3: not JSON ({reason}); mend or remove it"


@settings(max_examples=50, deadline=None)
@given(
    st.text(max_size=40)
    | st.recursive(st.floats(allow_nan=False) | st.text(), st.lists).map(json.dumps)
)
def test_any_line_is_a_value_or_an_error(text):
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(DataError, match="x: not JSON"):
            parsed(text, "x")
    else:
        assert repr(parsed(text, "x")) == repr(expected)
