"""What people expect of any command line: examples, groups, completion, json."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from qeval.cli.main import cli
from qeval.core.errors import QevalError, UsageError
from qeval.core.record import Metric, Record
from qeval.store.records import Store


def leaves(group: click.Group = cli, prefix: str = "") -> list[str]:
    found = []
    for name, command in group.commands.items():
        found.append(f"{prefix}{name}")
        if isinstance(command, click.Group):
            found += leaves(command, f"{prefix}{name} ")
    return found


def qeval(*args: str):
    return CliRunner().invoke(cli, [*args])


@pytest.mark.parametrize("name", ["", *leaves()])
def test_every_help_has_examples_whose_options_exist(name):
    text = qeval(*name.split(), "--help").stdout
    shown = re.findall(
        rf"^ +(?:.*[ '(])?qeval ?{name}(?= |$|\))([^)]*)", text.split("Options:")[0], re.M
    )
    shown = [line for line in shown if "[OPTIONS]" not in line]
    assert shown, text
    command: click.Command = cli
    for word in name.split():
        command = command.commands[word]
    known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
    for line in shown if name else []:
        words = line.split("|")[0].split()
        assert {w for w in words if re.match(r"--\w", w)} <= known, line


def test_every_command_is_in_a_group_of_the_help():
    text = qeval("--help").stdout
    grouped = [c.name for commands in cli.sections.values() for c in commands]
    assert sorted(grouped) == sorted(cli.commands) and len(grouped) == len(set(grouped))
    for title in cli.sections:
        assert f"\n{title}:\n" in text
    assert all(re.search(rf"^  {name} ", text, re.M) for name in cli.commands)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_what_the_shell_reads(shell):
    text = qeval("completion", shell).stdout
    assert "_QEVAL_COMPLETE" in text and shell in text


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for i, (label, method) in enumerate([("none", "none"), ("Q8_0", "gguf"), ("Q4_K_M", "gguf")]):
        for j, task in enumerate(("gptq/x", "gptq/y")):
            cell = {
                "model": {"id": "m", "identity": "x", "dtype": "float32"},
                "quantization": {"name": method, "label": label, "options": {"q": i}},
                "task": {"name": "perplexity", "label": task, "options": {}},
                "engine": {"name": "hf"},
                "order": [0, i, j],
            }
            metric = Metric("ppl", 3.0 + i, task, n=2, values=(3.0, 3.0 + i))
            log = f"jobs/eval-{i}{j}.log"
            Store(Path("r")).append(Record("eval", f"{i}{j}ab", cell, "ok", (metric,), log=log))
    return Path("r")


def test_show_finds_cells_by_key_row_and_name(results):
    assert qeval("show", "10", "r").stdout.count("status") == 1
    row = qeval("show", "q4_k_m", "r").stdout
    assert row.count("status") == 2 and "r/jobs/eval-20.log" in row and "r/jobs/eval-21.log" in row
    assert qeval("show", "gguf", "r").stdout.count("status") == 4  # of a method
    assert qeval("show", "Q8_0 · gptq/y", "r").stdout.count("status") == 1
    wrong = qeval("show", "Q4_KM", "r").exception
    assert isinstance(wrong, UsageError) and "did you mean 'Q4_K_M'?" in str(wrong)


def test_a_folder_that_comes_before_the_rows_is_told_where_it_belongs(results):
    for given, right in (
        ("show r Q8_0", "show Q8_0 r"),
        ("compare r Q8_0 none", "compare Q8_0 none r"),
    ):
        wrong = qeval(*given.split()).exception
        assert isinstance(wrong, UsageError) and str(wrong).endswith(f"qeval {right}")


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("show Q8_0 r", "status"),
        ("list cells r", "key"),
        ("data list", "licence"),
        ("env list", "state"),
        ("data verify --data-dir d", "status"),
    ],
)
def test_lists_are_json_where_asked(line, key, results):
    Path("d", "wikitext2").mkdir(parents=True)
    Path("d", "wikitext2", "wiki.test.raw").write_text("not what it should be")
    found = json.loads(qeval(*line.split(), "--format", "json").stdout)
    assert isinstance(found, list) and key in found[0]


def test_other_lists_are_json_too(results):
    assert json.loads(qeval("cache", "list", "--format", "json").stdout)["models"] == []
    methods = json.loads(qeval("list", "methods", "--format", "json").stdout)
    assert methods["gptq"]["properties"]["num_bits"]["default"] == 4
    assert list(json.loads(qeval("list", "tasks", "speed", "--format", "json").stdout)) == ["speed"]
    assert json.loads(qeval("list", "configs", "demo", "--format", "json").stdout)[0].endswith(
        "demo.yaml"
    )
    assert isinstance(qeval("list", "methods", "gtpq", "--format", "json").exception, QevalError)
    assert json.loads(qeval("schema").stdout)["title"] == "A spec of qeval"


def test_what_shows_progress_can_be_quiet_and_the_letters_are_one_thing_each():
    """-q is --quantizations where there are some, else --quiet; -v is --verbose everywhere."""
    quiet = set()
    for name in leaves():
        command: click.Command = cli
        for word in name.split():
            command = command.commands[word]
        letters = {o: p.name for p in command.params for o in p.opts if re.fullmatch(r"-\w", o)}
        assert letters.get("-v", "verbose") == "verbose"
        assert letters.get("-q", "quiet") in ("quiet", "quantizations")
        quiet |= {name for p in command.params if "--quiet" in p.opts}
    assert quiet == {"try", "run", "score", "stats", "env create"}
    both = qeval("env", "create", "vllm", "-q", "-v").exception
    assert isinstance(both, UsageError) and "give one of them" in str(both)
