"""The command line: exit codes, one-line errors, help, and what each command prints."""

import json
import re
import subprocess
import sys

import click
import pytest
from program import qeval

from qeval.cli.main import cli
from qeval.core.record import Metric, Record
from qeval.store.records import Store
from qeval.tasks.base import TASKS


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
        "import sys, qeval.cli.main\n"
        "slow = {'pydantic', 'yaml', 'rich', 'numpy', 'qeval.plan', 'qeval.jobs', 'qeval.report'}\n"
        "found = slow & set(sys.modules)\n"
        "import qeval.store.results, qeval.report.rows, qeval.plan.survey\n"
        "heavy = {'torch', 'transformers', 'llama_cpp', 'datasets', 'scipy', 'numpy'}\n"
        "found |= heavy & set(sys.modules)\n"
        "sys.exit(', '.join(found) or 0)"
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
        "offers activations, floor, generate, kv_cache, logits, memory, nll, steps"
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


def test_debug_and_the_cache_folder_are_taken_where_users_put_them(tmp_path):
    for args in (
        ("--debug", "run", "no.yaml"),
        ("run", "--debug", "no.yaml"),
        ("run", "no.yaml", "--debug"),
    ):
        done = qeval(*args, cwd=tmp_path)
        assert "Traceback" in done.stderr and done.returncode == 2
    for args in (("cache", "--debug", "list"), ("cache", "list", "--debug")):
        assert qeval(*args).returncode == 0
    a, b = tmp_path / "a", tmp_path / "b"
    for group in ("cache", "env"):
        assert str(a) in qeval(group, "--cache-dir", a, "list").stdout
        assert str(a) in qeval(group, "list", "--cache-dir", a).stdout
        both = qeval(group, "--cache-dir", b, "list", "--cache-dir", a).stdout
        assert str(a) in both and str(b) not in both
    assert qeval("cache", "remove", "--all", "--cache-dir", a).returncode == 0


def test_every_command_takes_debug():
    for name in commands():
        command = cli
        for word in name.split():
            command = command.commands[word]
        assert "--debug" in {option for parameter in command.params for option in parameter.opts}, name


@pytest.mark.parametrize("option", ["tpu", "cuda:", "cuda:x", "cuda:-1", "CPU", "cuda:²"])
def test_an_options_error_names_the_option_and_not_the_file(option, tmp_path):
    spec = tmp_path / "s.yaml"
    spec.write_text("name: s\nmodels: [m]\nquantizations: [none]\ntasks: [speed]\n")
    done = qeval("run", spec, "--device", option)
    assert done.returncode == 2
    assert done.stderr == f"qeval: --device {option}: must be auto, cpu, cuda or cuda:N\n"
    done = qeval("stats", "m", "--device", option)
    assert done.returncode == 2
    assert f"--device {option}: must be auto, cpu, cuda or cuda:N" in done.stderr
    spec.write_text(f"device: '{option}'\n" + spec.read_text())
    assert f"qeval: - {spec}:1: device: must be auto" in qeval("run", spec).stderr  # and no model m


def test_list_speaks_the_specs_language():
    out = qeval("list", "methods").stdout
    for python in (
        "Optional",
        "Literal",
        "Union",
        "NoneType",
        "None",
        "True",
        "False",
        "'",
        "class",
        "~",
    ):
        assert python not in re.sub(r"^\S.*$", "", out, flags=re.M), python
    assert "\n    type: nf4 | fp4 | null, default null\n" in out
    assert "\n    num_blocks: int or null, default null, >= 1\n" in out
    assert (
        "calibration: {dataset, n_samples, seq_len, seed}, default {dataset: c4-train, n_samples: 128"
        in out
    )
    assert "\n    activations: bits, or {num_bits, granularity, symmetric}" in out
    assert "\n    kv_cache: bits, or {num_bits, group_size}" in out
    tasks = qeval("list", "tasks").stdout
    assert "\n    dataset or datasets: text, required\n" in tasks
    assert tasks.count("\n    limit: int or null, default the spec's, >= 1\n") == len(TASKS.built_in)
    assert "\n    batch_sizes: list of int, default [1, 8]" in tasks


def test_list_of_one_name():
    out = qeval("list", "methods", "gptq").stdout
    assert out.startswith("gptq: ") and "act_order" in out and "\nawq: " not in out
    assert qeval("list", "engines", "hf").stdout.count("offers") == 1
    done = qeval("list", "tasks", "perplexty")
    assert done.returncode == 2
    assert "unknown task 'perplexty'; did you mean 'perplexity'?" in done.stderr


def test_reading_results_needs_no_locks(tmp_path):
    """As on a system without fcntl and the other modules of POSIX."""
    record = {
        "schema_version": 1,
        "kind": "eval",
        "key": "abc",
        "status": "ok",
        "cell": {
            "model": {"id": "m", "dtype": "float32"},
            "quantization": {"name": "none", "label": "none", "options": {}},
            "task": {"name": "speed", "label": "speed", "options": {}},
        },
    }
    (tmp_path / "records.jsonl").write_text(json.dumps(record) + "\n")
    code = (
        "import sys\n"
        "for name in ('fcntl', 'resource', 'termios', 'pwd', 'grp', 'pty', 'syslog'):\n"
        "    sys.modules[name] = None\n"
        "sys.argv = ['qeval', *sys.argv[1:]]\n"
        "from qeval.cli.main import main\n"
        "main()"
    )
    for args in (["table"], ["show", "abc"], ["list", "cells"]):
        command = [sys.executable, "-c", code, *args, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "speed" in done.stdout


def test_tables_of_folders_are_cut_sorted_and_compared_as_asked(tmp_path):
    rows = [("none", 20.0, True), ("Q8_0", 21.0, False), ("RTN W4", 25.0, False)]
    for i, (label, value, baseline) in enumerate(rows):
        cell = {
            "model": {"id": "m", "identity": "x", "dtype": "float32"},
            "quantization": {"name": label.split()[0].lower(), "label": label, "options": {"q": i}},
            "task": {"name": "perplexity", "label": "gptq/x", "options": {}},
            "engine": {"name": "hf"},
            "baseline": baseline,
            "order": [0, i, 0],
        }
        metric = Metric("ppl", value, "gptq/x", n=2, values=(3.0, 3.0 + i))
        Store(tmp_path / "r").append(Record("eval", str(i), cell, "ok", (metric,)))

    def labels(*options: str) -> list[str]:
        done = qeval("table", "r", "--format", "csv", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return [line.split(",")[2] for line in done.stdout.splitlines()[1:]]

    assert labels() == ["none", "Q8_0", "RTN W4"]
    assert labels("--sort", "-ppl") == ["RTN W4", "Q8_0", "none"]
    assert labels("--sort", "ppl", "--only", "q8", "--only", "rtn*") == ["Q8_0", "RTN W4"]
    assert "baseline (Q8_0)" in qeval("table", "r", "--baseline", "q8_0", cwd=tmp_path).stdout
    for options in (("--baseline", "Q9"), ("--sort", "pl"), ("--only", "zzz")):
        done = qeval("table", "r", *options, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert options[1] in done.stderr


def test_the_specs_that_come_with_qeval_are_found_by_name():
    paths = qeval("list", "configs").stdout.split()
    assert [p.rpartition("/")[2] for p in paths if "demo" in p] == ["demo.yaml"]
    assert qeval("list", "configs", "demo").stdout.split() == [p for p in paths if "/demo." in p]
    done = qeval("list", "configs", "dmo")
    assert done.returncode == 2 and "did you mean 'demo'?" in done.stderr
