"""Progress: a job's phase, its count and the time that it takes, on terminals of any width."""

import io
import itertools
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from qeval.jobs import display
from qeval.jobs.display import Progress

TITLE = "stories260K · gptq W4A16g32 · perplexity/wikitext2"


def steps(progress: Progress) -> None:
    progress.job_started(TITLE)
    progress.job_progress(0, 0, "loading the model")
    progress.job_progress(100, 164, "windows")  # of which an interrupted run did 100
    progress.job_progress(132, 164, "windows")
    progress.job_progress(41, 164, "programs")


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Ten seconds at every look."""
    ticks = itertools.count(0.0, 10.0)
    monkeypatch.setattr(display, "time", SimpleNamespace(monotonic=lambda: next(ticks)))


def test_lines_have_the_phase_the_time_and_the_rest_of_the_phase(capsys, monkeypatch):
    monkeypatch.setattr(Progress, "EVERY_S", 0.0)
    with Progress(3) as progress:
        steps(progress)
    said = [line.removeprefix(f"[0/3] {TITLE}") for line in capsys.readouterr().err.splitlines()]
    assert said[0] == " ..." and said[1].startswith(": loading the model, ")
    assert ": 132 of 164 windows, " in said[3]
    took, left = said[3].rpartition("about ")[::2]
    assert took and left == "10 s left"  # 32 took one look, 32 are to do
    assert "left" not in said[4]  # another phase: its speed is not known yet


@pytest.mark.parametrize("width", [20, 40, 79, 80, 200])
def test_a_terminal_has_a_line_for_all_and_one_for_the_job_at_any_width(width, monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(
        "rich.console.Console", lambda **_: Console(file=out, width=width, force_terminal=True)
    )
    with Progress(3) as progress:
        steps(progress)
        assert progress._bars is not None
        lines = progress._bars.console.render_lines(progress._bars.get_renderable(), pad=False)
    text = ["".join(segment.text for segment in line).rstrip() for line in lines]
    text = [line for line in text if line]
    assert len(text) == 2, text
    assert all(len(line) <= width for line in text)
    assert "programs  41/164" in text[1]  # whatever of the title has room beside it
    assert (TITLE in text[1]) == (width in (79, 200)) and "0/3" in text[0]


def test_a_terminal_that_cannot_redraw_gets_lines(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(Progress, "EVERY_S", 0.0)
    with Progress(3) as progress:
        steps(progress)
    said = capsys.readouterr().err
    assert ": 132 of 164 windows, " in said and "\x1b" not in said


@pytest.mark.parametrize("quiet", [False, True])
def test_a_bar_can_be_quiet(quiet, capsys):
    with display.Bar(quiet) as bar:
        bar.update(1, 3, "programs")
        bar.update(2, 3, "programs")
    assert capsys.readouterr().err.count("2 of 3 programs, ") == (not quiet)
