"""The commands of docs/jobs.md, one after the other, on a tiny model."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from in_process import InProcess

from qeval.cli.main import cli

PAGE = (Path(__file__).parents[1] / "docs" / "jobs.md").read_text(encoding="utf-8")
SECTIONS = {
    part.splitlines()[0]: re.findall(r"^qeval .+$", part, re.M) for part in PAGE.split("\n## ")[1:]
}


def test_every_job_has_at_most_three_commands():
    assert SECTIONS and all(1 <= len(commands) <= 3 for commands in SECTIONS.values())


@pytest.mark.real
def test_the_page_runs_on_a_tiny_model(tmp_path, monkeypatch):
    pytest.importorskip("torchao")
    pytest.importorskip("optimum.quanto")
    pytest.importorskip("vl_convert")
    from qeval.doctor.tiny import make

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("qeval.jobs.executor.LocalExecutor", InProcess)
    make(Path("model"), steps=6)
    said = {}
    for title, commands in SECTIONS.items():
        for command in commands:
            done = CliRunner().invoke(cli, shlex.split(command)[1:])
            assert done.exit_code == 0, (command, done.output, done.exception)
            said[title] = done.stdout + done.stderr
    assert "quanto" in said["Compare six"] and "0 of 6 cells" in said["Compare six"]
    assert "6 of 7 cells are done" in said["Add a row"]
    assert "llamacpp/pydoc" in said["Change a task"] and "gptq/pydoc" in said["Change a task"]
    assert said["Merge two machines"].count("RTN W4A16g64") == 1  # merged, not twice
    assert " 0 failed" in said["Gate a pull request"]
    assert "run " in said["Choose one for a machine"]
    assert "RTN W3A16g64" in said["Explain a difference"]
    assert "plots/pareto.svg" in said["Share"] and "Run " in Path("report.html").read_text("utf-8")
    assert Path("plots/pareto.svg").exists() and Path("plots/pareto.png").exists()
