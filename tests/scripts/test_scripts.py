"""The shell scripts: they parse, can be run, and refuse an old Python with one clear line."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
SCRIPTS = [
    REPO / ".ci/run",
    *(REPO / f"scripts/{n}" for n in ("setup", "demo", "test", "check", "smoke")),
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_parses_and_is_executable(script: Path):
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)


def run_setup(tmp_path: Path, interpreter: str) -> subprocess.CompletedProcess[str]:
    """scripts/setup of a copy of the repository, with a shell script as its Python."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(REPO / "scripts/setup", tmp_path / "scripts")
    shutil.copy(REPO / "pyproject.toml", tmp_path)
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\n{interpreter}\n")
    fake.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(fake), "QEVAL_CACHE_DIR": str(tmp_path / "cache")}
    return subprocess.run(
        [tmp_path / "scripts/setup"], env=environment, capture_output=True, text=True, timeout=60
    )


def test_setup_refuses_an_old_python(tmp_path: Path):
    done = run_setup(tmp_path, 'test "$1" = --version && echo Python 3.9.2 && exit 0\nexit 1')
    assert done.returncode == 1
    assert "needs Python 3.11 or newer" in done.stderr and "Python 3.9.2" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_setup_names_the_package_where_venv_is_missing(tmp_path: Path):
    done = run_setup(tmp_path, 'case "$2" in *ensurepip*) exit 1;; esac\nexit 0')
    assert done.returncode == 1
    assert "apt-get install python3-venv" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
