"""`qeval plan` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from in_process import InProcess

from qeval.cli.main import cli
from qeval.core.errors import StoreError, UsageError

SPEC = """\
name: toy
models: [{model}]
dtype: float32
quantizations: [{{copy: 8}}, {{copy: 4}}]
tasks: [{{perplexity: {{dataset: 'file:text.txt', seq_len: 32}}}}{more}]
baseline: copy8
"""


@pytest.fixture
def spec(plugin, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("qeval.jobs.executor.LocalExecutor", InProcess)
    Path("text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)

    def write(more: str = "") -> str:
        Path("toy.yaml").write_text(SPEC.format(model=tiny_llama, more=more))
        return "toy.yaml"

    return write


def qeval(*args: str):
    return CliRunner().invoke(cli, [*args], catch_exceptions=True)


def test_it_looks_and_leaves_everything_as_it_is(spec, tmp_path):
    path = spec()
    there = lambda: sorted(p for p in tmp_path.iterdir() if p.name != "cache")  # noqa: E731
    before = there()
    done = qeval("plan", path, "--detect", "1%", "--limit", "20")
    assert done.exit_code == 0, done.output
    assert "20 windows" in done.output and "unknown: no earlier run" in done.output
    assert "4 jobs to run" in done.output
    assert there() == before and not (tmp_path / "cache/artifacts").exists()


def test_a_pilot_tells_of_the_whole(spec):
    """Of a run that was really made, in another results folder."""
    path = spec()
    assert qeval("run", path, "--limit", "16", "--results", "pilot").exit_code == 0
    [column] = json.loads(qeval("plan", path, "pilot", "--format", "json").stdout)["columns"]
    assert column["spread"] == "earlier run of this model, 16 units"
    assert column["finds"] == [{"row": "copy4", "value": 0.0, "measured": 16}]  # they are identical
    assert not Path("results").exists()


@pytest.mark.parametrize("fmt", ["text", "json"])
def test_problems_and_exit_code_are_those_of_a_dry_run(spec, fmt):
    path = spec(", {perplexity: {dataset: 'file:gone.txt'}}")
    planned, dry = qeval("plan", path, "--format", fmt), qeval("run", path, "--dry-run")
    assert planned.exit_code == dry.exit_code == 1
    said = [line for line in dry.stderr.splitlines() if "gone.txt" in line]
    assert said and set(said) <= set(planned.stderr.splitlines())
    if fmt == "json":
        assert json.loads(planned.stdout)["jobs"][1]["refused"] == 2


def test_bad_input_is_one_line(spec):
    path = spec()
    assert isinstance(qeval("plan", path, "nowhere").exception, StoreError)
    assert isinstance(qeval("plan", path, "--detect", "much").exception, UsageError)
    assert isinstance(qeval("plan", "gone.yaml").exception, UsageError)
