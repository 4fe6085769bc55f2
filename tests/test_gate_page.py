"""The worked workflow of docs/gate.md, as GitHub would run its steps."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

REPO = Path(__file__).parents[1]
PAGE = (REPO / "docs" / "gate.md").read_text(encoding="utf-8")

PROGRAM = """
import in_process, qeval.jobs.executor  # one process for all jobs: torch is imported once
from qeval.__main__ import main
qeval.jobs.executor.LocalExecutor = in_process.InProcess
main()
"""


def file(name: str) -> str:
    """The file that the page shows under its name."""
    found = re.search(rf"^`{re.escape(name)}`:\n\n```yaml\n(.*?)^```$", PAGE, re.M | re.DOTALL)
    assert found, name
    return found[1]


def test_the_rules_that_the_page_shows_are_rules(tmp_path: Path):
    from qeval.decide.rules import load_rules

    shown = re.search(r"^## Rules\n\n```yaml\n(.*?)^```$", PAGE, re.M | re.DOTALL)
    assert shown
    path = tmp_path / "rules.yaml"
    path.write_text(shown[1], encoding="utf-8")
    assert [rule.column for rule in load_rules(path)][:2] == ["kld", "ppl_increase"]


def test_every_option_is_explained():
    from qeval.cli.main import cli

    for parameter in cli.commands["gate"].params:
        for option in parameter.opts if parameter.opts[0].startswith("--") else ():
            assert f"| `{option}` |" in PAGE or option == "--debug", option


@pytest.mark.real
def test_the_workflow_runs_on_a_tiny_model(tmp_path: Path):
    for name in ("gate/spec.yaml", "gate/rules.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(file(name), encoding="utf-8")
    (tmp_path / "scripts").symlink_to(REPO / "scripts")
    [job] = yaml.safe_load(file(".github/workflows/gate.yaml"))["jobs"].values()
    steps = [step["run"] for step in job["steps"] if "run" in step]
    install, *steps = steps
    assert install == "pip install '.[hf]'"
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "program.py").write_text(PROGRAM)
    for name, arguments in (("python", ""), ("qeval", f'"{bin_folder / "program.py"}" ')):
        (bin_folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}"$@"\n')
        (bin_folder / name).chmod(0o755)
    path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
    where = os.pathsep.join(
        [str(REPO), str(REPO / "tests" / "helpers"), os.environ.get("PYTHONPATH", "")]
    )
    summary = tmp_path / "summary.md"
    github = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    env = {**os.environ, "PATH": path, "PYTHONPATH": where, **github}
    for step in steps:
        done = subprocess.run(
            ["bash", "-e", "-c", step], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout.count("\npass ") + done.stdout.startswith("pass ") == 2
    assert "::error" not in done.stdout and "gate: pass" in summary.read_text(encoding="utf-8")
    assert ElementTree.parse(tmp_path / "gate.xml").getroot().get("tests") == "2"
