"""The command line: exit codes, one-line errors, help, and what each command prints."""

import subprocess
import sys

import click
import pytest

from qeval.cli import cli


def qeval(*args, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "qeval", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=60,
        **kwargs,
    )


def commands(group: click.Group = cli, prefix: str = "") -> list[str]:
    found = []
    for name, command in group.commands.items():
        found.append(f"{prefix}{name}")
        if isinstance(command, click.Group):
            found += commands(command, f"{prefix}{name} ")
    return found


@pytest.mark.parametrize("command", ["", *commands()])
def test_every_command_has_help(command):
    done = qeval(*command.split(), "--help")
    assert done.returncode == 0
    assert "Usage:" in done.stdout
    assert done.stdout.splitlines()[2].strip()


def test_help_and_table_import_nothing_heavy():
    code = (
        "import sys, qeval.cli, qeval.results, qeval.report.rows, qeval.commands\n"
        "heavy = {'torch', 'transformers', 'llama_cpp', 'datasets', 'scipy', 'numpy'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["run", "nope.yaml"], 2, "qeval: nope.yaml: no such file"),
        (["table", "nope"], 1, "qeval: results folder nope does not exist"),
        (["show", "ab", "nope"], 1, "qeval: results folder nope does not exist"),
        (["list", "cells"], 2, "qeval list cells: name a spec file"),
        (["cache", "remove"], 2, "qeval cache remove: give KEYS"),
        (["data", "verify"], 2, "qeval data verify: give --data-dir"),
        (["score", "nope.jsonl"], 1, "nope.jsonl"),
        (["stats", "nope"], 1, "qeval: nope: no such model folder"),
        (["stats", "nope", "--sort", "size"], 2, "'size' is not one of 'absmax', 'std'"),
        (["nope"], 2, "No such command 'nope'"),
        (["table"], 2, "Missing argument"),
    ],
)
def test_errors_are_one_line_with_the_right_exit_code(args, code, message, tmp_path):
    done = qeval(*args, cwd=tmp_path)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == code


def test_debug_shows_the_traceback(tmp_path):
    assert "Traceback" in qeval("--debug", "run", "nope.yaml", cwd=tmp_path).stderr


def test_list_names_everything_with_options():
    out = qeval("list", "methods").stdout
    for word in ("none: ", "rtn: ", "gguf: ", "checkpoint: ", "num_bits: int, default 4", "group_size"):
        assert word in out
    assert (
        "offers activations, generate, kv_cache, logits, memory, nll, steps"
        in qeval("list", "engines").stdout
    )
    assert "n_samples" in qeval("list", "tasks").stdout


def test_a_results_file_of_a_newer_qeval(tmp_path):
    (tmp_path / "records.jsonl").write_text('{"schema_version": 99, "kind": "eval"}\n')
    done = qeval("table", tmp_path)
    assert done.returncode == 1
    assert "schema version 99" in done.stderr
    assert "upgrade" in done.stderr


def test_a_third_partys_plugin_is_listed(plugin):
    out = qeval("list", "methods").stdout
    assert "copy: " in out
