"""`qeval try`: a first table of a model that is made on the spot."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import pytest
from click.testing import CliRunner
from in_process import InProcess

from qeval.cli.main import cli
from qeval.core.errors import MissingExtraError, QevalError
from qeval.doctor.tiny import docstrings, make


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("qeval.jobs.executor.LocalExecutor", InProcess)
    return tmp_path


def test_it_prints_a_table_and_says_how_to_go_on(here, monkeypatch):
    monkeypatch.setattr("qeval.cli.try_.train", lambda model: make(model, steps=2))
    done = CliRunner().invoke(cli, ["try"])
    assert done.exit_code == 0, done.output
    for row in ("none", "RTN W3A16g32"):
        assert row in done.stdout
    assert "qeval run ORG/NAME" in done.stderr and "qeval-try/try.yaml" in done.stderr
    assert sorted(p.name for p in (here / "qeval-try").iterdir()) == ["model", "results", "try.yaml"]
    again = CliRunner().invoke(cli, ["try"])
    assert again.exit_code == 0 and "2 of 2 cells are done" in again.stderr


def test_training_teaches_something(here):
    assert make(Path("model"), steps=12) < make(Path("other"), steps=2) < 6.4  # ln 512 is 6.24
    assert not list(here.glob(".*-unfinished"))


def test_there_is_text_to_learn():
    assert any(total > 200_000 for total in accumulate(map(len, docstrings())))


def test_what_is_in_the_way_is_one_line(here, monkeypatch):
    (here / "file").touch()
    found = CliRunner().invoke(cli, ["try", "file"])
    assert isinstance(found.exception, QevalError | OSError)
    from qeval.core import extras

    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    assert isinstance(CliRunner().invoke(cli, ["try"]).exception, MissingExtraError)
