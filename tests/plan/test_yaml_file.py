"""YAML read with limits: what is no spec ends in one line, whatever it is."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from qeval.core.errors import SpecError
from qeval.plan import yaml_file
from qeval.plan.yaml_file import YamlFile

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{chr(ord(name) - 1)}'] * 9)}]\n" for name in "bcdefghi"
)
MERGES = "a: &a {k: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{','.join([f'*{chr(ord(name) - 1)}'] * 9)}]}}\n" for name in "bcdefghi"
)


def read(tmp_path, text: str | bytes):
    path = tmp_path / "s.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return YamlFile(path).data


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("-2.5e+4", -25000.0),
        (".5", 0.5),
        ("1_000", 1000),
        ("0x1F", 31),
        ("0o17", 15),
        ("-9223372036854775808", -(2**63)),
        ("yes", True),
        ("~", None),
        ("2001-11-11", "2001-11-11"),
        ("2001-13-45", "2001-13-45"),
        ("1:30", "1:30"),
        ("12:30:45.5", "12:30:45.5"),
        ("e5", "e5"),
        ("1e", "1e"),
        ("1.2.3", "1.2.3"),
        ("'1e-3'", "1e-3"),
        ('"a\\tb\\nc"', "a\tb\nc"),
        ("é\U0001f600", "é\U0001f600"),
    ],
)
def test_plain_words_and_numbers(tmp_path, written, value):
    found = read(tmp_path, f"k: {written}\n")["k"]
    assert (type(found), found) == (type(value), value)


def test_everything_else_is_as_pyyaml_reads_it(tmp_path):
    text = "a: [1, 2.5, .inf, true, off, text, ~, '', 0b11]\nb: &x {c: d}\ne: {<<: *x, f: *x}\n"
    assert read(tmp_path, text) == yaml.safe_load(text)
    assert read(tmp_path, "\ufeffa: 1\r\nb: 2\r\n") == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "s.yaml: the top level must be a mapping"),
        ("- a\n", "s.yaml: the top level must be a mapping"),
        ("a: &x [*x]\n", "s.yaml:1: 'x' contains itself"),
        ("a: 1\nb: &x {c: {d: [*x]}}\n", "s.yaml:2: 'x' contains itself"),
        ("&r\na: *r\n", "s.yaml:2: 'r' contains itself"),
        ("a: &x {<<: *x}\n", "s.yaml:1: 'x' contains itself"),
        ("a: " + "[" * 100_000, "s.yaml:1: nested over 50 deep"),
        ("a: " + "{b: " * 10_000, "s.yaml:1: nested over 50 deep"),
        ("".join(" " * i + "a:\n" for i in range(200)), "s.yaml:51: nested over 50 deep"),
        ("? " * 10_000, "s.yaml:1: nested over 50 deep"),
        (BOMB, "s.yaml:6: over 100,000 values, with what aliases stand for"),
        (MERGES, "s.yaml:6: over 100,000 values, with what aliases stand for"),
        ("a: [" + "1," * 120_000 + "]\n", "s.yaml:1: over 100,000 values"),
        ("a: b # " + "x" * 300_000, "s.yaml: over 256.0 KiB"),
        ("a: {b: !!int abc}\n", "s.yaml:1: a.b: 'abc' is no int"),
        ("a: !!float abc\n", "s.yaml:1: a: 'abc' is no float"),
        ("a: !!bool abc\n", "s.yaml:1: a: 'abc' is no bool"),
        ("a: !!timestamp abc\n", "s.yaml:1: a: 'abc' is no timestamp"),
        ("a: !!timestamp 2001-13-45\n", "s.yaml:1: a: '2001-13-45' is no timestamp"),
        ("a: !!int\n", "s.yaml:1: a: '' is no int"),
        ("a: !!int [1]\n", "s.yaml:1: not valid YAML: expected a scalar node"),
        ("a: !!python/object/apply:os.system [id]\n", "s.yaml:1: not valid YAML: could not determine"),
        ("a:\n  b: " + "9" * 5000, "s.yaml:2: a.b: '999999"),
        ("a: 0x" + "f" * 5000, "does not fit into 64 bits"),
        ("a: 9223372036854775808\n", "s.yaml:1: a: '9223372036854775808' does not fit into 64 bits"),
        ('a: "x\\0y"\n', "s.yaml:1: a: 'x\\x00y' holds the character U+0000"),
        ('a: [b, "\\ud800"]\n', "s.yaml:1: a: '\\ud800' holds the character U+D800"),
        ('a: "\\e[31m"\n', "s.yaml:1: a: '\\x1b[31m' holds the character U+001B"),
        ('"a\\0": 1\n', "holds the character U+0000"),
        ("a: 1\nb: \0\n", "s.yaml:2: not valid YAML: the character U+0000"),
        (b"a: \xff\xfe\n", "s.yaml:1: not UTF-8 text"),
        ("a: \ud800\n", "s.yaml:1: not UTF-8 text"),
        ("a: 1\n".encode("utf-16"), "s.yaml:1: not UTF-8 text"),
        ("3: 4\n", "s.yaml:1: the key '3' is no text: quote it"),
        ("a: {~: 4}\n", "s.yaml:1: the key '~' is no text: quote it"),
        ("true: 4\n", "s.yaml:1: the key 'true' is no text"),
        ("? [a, b]\n: 3\n", "s.yaml:1: a key must be a plain text"),
        ("? {a: b}\n: 3\n", "s.yaml:1: a key must be a plain text"),
        ("a: {b: 1, b: 2}\n", "s.yaml:1: 'b' stands twice"),
        ("a: &x 1\nb: &x 2\n", "s.yaml:2: not valid YAML: an anchor stands twice"),
        ("a: *x\n", "s.yaml:1: not valid YAML: found undefined alias 'x'"),
        ("a: 1\n---\nb: 1\n", "s.yaml:2: not valid YAML: but found another document"),
    ],
)
def test_what_is_no_spec_is_one_line(tmp_path, text, message):
    with pytest.raises(SpecError) as caught:
        read(tmp_path, text)
    said = str(caught.value)
    assert message in said
    assert "\n" not in said and said.isprintable() and len(said) < 300 + len(str(tmp_path))


def test_a_bomb_takes_little_memory(tmp_path):
    (tmp_path / "s.yaml").write_text(BOMB)
    code = (
        "import sys; from pathlib import Path; from qeval.plan.yaml_file import YamlFile, SpecError\n"
        "try: YamlFile(Path(sys.argv[1]))\n"
        "except SpecError as err: print(err)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "s.yaml"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30)),
    )
    assert "over 100,000 values" in done.stdout, done.stderr


def test_devices_pipes_and_folders_are_refused_and_what_the_shell_hands_over_is_read(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, kind in [("/dev/zero", "a device"), (fifo, "a pipe"), (tmp_path, "a folder")]:
        with pytest.raises(SpecError, match=f"{path}: is {kind}: name a regular file"):
            YamlFile(Path(path))
    with pytest.raises(SpecError, match="no such file"):
        YamlFile(tmp_path / "nope")
    with pytest.raises(SpecError, match="File name too long"):
        YamlFile(tmp_path / ("x" * 300))
    code = (
        "from pathlib import Path; from qeval.plan.yaml_file import YamlFile\n"
        "print(YamlFile(Path('/dev/stdin')).data)"
    )
    done = subprocess.run([sys.executable, "-c", code], input="a: 1\n", capture_output=True, text=True)
    assert done.stdout == "{'a': 1}\n", done.stderr
    with Path("/dev/zero").open("rb") as endless:
        done = subprocess.run(
            [sys.executable, "-c", code], stdin=endless, capture_output=True, text=True
        )
    assert "/dev/stdin: over 256.0 KiB" in done.stderr


def test_the_limits_leave_room_for_the_largest_spec_there_is():
    options = YamlFile(Path(__file__).parents[2] / "configs" / "options.yaml")
    assert 20 * len(options.text) < yaml_file.MAX_BYTES
