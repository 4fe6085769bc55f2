"""`qeval run MODEL -q ... -t ...`, `qeval init` and a spec from standard input, as users meet them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from in_process import InProcess

from qeval.cli.main import cli
from qeval.core.errors import QevalError
from qeval.plan.spec import load_spec

TEXT = "{perplexity: {dataset: 'file:text.txt', seq_len: 32}}"


@pytest.fixture
def model(plugin, tiny_llama, tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("qeval.jobs.executor.LocalExecutor", InProcess)
    Path("text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    return str(tiny_llama)


def qeval(*args: str, **how: object):
    return CliRunner().invoke(cli, [*args], catch_exceptions=True, **how)


def said(done) -> list[str]:
    return done.exception.lines if isinstance(done.exception, QevalError) else done.stderr.splitlines()


def test_a_line_is_run_and_its_spec_kept(model):
    line = ("run", model, "-q", "copy:4", "-t", TEXT, "--limit", "2", "--dtype", "float32")
    done = qeval(*line, "--save", "mine.yaml", "--name", "mine")
    assert done.exit_code == 0, said(done)
    assert "copy4" in done.stdout and "2 windows" not in done.stderr
    kept = Path("results/mine/spec.yaml").read_text()
    assert kept == Path("mine.yaml").read_text()
    assert load_spec(Path("mine.yaml")).settings.limit == 2
    again = qeval("run", "mine.yaml")
    assert again.exit_code == 0 and "2 of 2 cells are done" in again.stderr
    more = qeval("run", model, "-q", "copy:4,copy:8", *line[4:], "--name", "mine")  # a row more
    assert more.exit_code == 0 and "2 of 3 cells are done" in more.stderr


def test_a_file_that_is_there_is_not_overwritten(model):
    Path("mine.yaml").write_text("other\n")
    done = qeval("run", model, "-t", TEXT, "--save", "mine.yaml", "--dry-run")
    assert said(done) == ["mine.yaml: is there already, with other content: save it under another name"]
    assert Path("mine.yaml").read_text() == "other\n"


def test_a_dry_run_tells_everything_and_time_and_disk(model):
    line = ("run", model, "-t", TEXT, "--limit", "2", "--dtype", "float32")
    done = qeval(*line, "-q", "copy:4", "--dry-run")
    assert done.exit_code == 0, said(done)
    assert "3 jobs to run, time unknown: no earlier run here" in done.stderr  # none needs no build
    assert "disk: " in done.stderr and " are free in " in done.stderr
    assert not Path("results").exists()
    assert qeval(*line).exit_code == 0
    other = qeval(*line, "-q", "copy:4", "--name", "other", "--dry-run")
    assert "jobs to run: about" in other.stderr  # from the folder beside it


def test_all_errors_come_at_once_with_one_command_for_what_is_missing(model, monkeypatch):
    from qeval.core import extras

    there = extras.find_spec
    missing = ("bitsandbytes", "torchao")
    monkeypatch.setattr(extras, "find_spec", lambda n: None if n in missing else there(n))
    bad = ("run", model, "-q", "nf4,int8wo,gptq4,gptq:5", "-t", f"{TEXT},humanevl", "--limit", "2")
    for more in ((), ("--dry-run",)):
        done = qeval(*bad, *more)
        assert done.exception.exit_code == 2
        head, *lines, install = said(done)
        assert head == "5 problems, nothing was started:"
        assert [line.split(": ")[0] for line in lines[:3]] == [
            "- -q gptq4",
            "- -t humanevl",
            "- -q gptq:5",
        ]
        assert [line.split(": ")[0] for line in lines[3:]] == ["- NF4", "- torchao int8wo"]
        assert install == "- install what is missing: pip install 'qeval[bitsandbytes,torchao]'"
    assert not Path("results").exists()


def test_a_spec_comes_from_standard_input(model):
    text = f"name: piped\nmodels: [{model}]\nquantizations: [none]\ntasks: [{TEXT}]\n"
    done = subprocess.run(
        [sys.executable, "-m", "qeval", "run", "-", "--dry-run"],
        input=text,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "1 cells, 0 done" in done.stderr
    wrong = subprocess.run(
        [sys.executable, "-m", "qeval", "run", "-"],
        input=text + "x: 1\n",
        capture_output=True,
        text=True,
    )
    assert (
        wrong.stderr
        == "qeval: /dev/stdin:5: x: unknown key; known: " + wrong.stderr.split("known: ")[1]
    )


def test_options_of_a_line_are_not_for_a_spec(model):
    Path("s.yaml").write_text("name: s\n")
    done = qeval("run", "s.yaml", "-q", "awq", "--dtype", "float32")
    assert said(done)[0].startswith(
        "-q, --dtype: for a MODEL (a folder, a .gguf file, ORG/NAME); s.yaml"
    )


def test_plan_takes_a_line(model):
    done = qeval("plan", model, "-q", "copy:4", "-t", TEXT, "--limit", "9")
    assert done.exit_code == 0, said(done)
    assert "9 windows" in done.stdout


def test_init_writes_a_spec_and_never_over_another(model):
    done = qeval(
        "init", model, "-q", "Q4_K_M,gptq:4", "-t", "humaneval", "--limit", "3", "-o", "a.yaml"
    )
    assert done.exit_code == 0 and done.stdout == "a.yaml\n" and "qeval run a.yaml" in done.stderr
    assert [q.label for q in load_spec(Path("a.yaml")).quantizations] == [
        "none",
        "Q4_K_M",
        "GPTQ W4A16g128",
    ]
    assert qeval(
        "init", model, "-q", "Q4_K_M,gptq:4", "-t", "humaneval", "--limit", "3", "-o", "a.yaml"
    )
    assert (
        "is there already" in said(qeval("init", model, "-q", "awq", "-t", "speed", "-o", "a.yaml"))[0]
    )
    assert "-q gptq:5: num_bits" in str(qeval("init", model, "-q", "gptq:5", "-t", "speed").exception)


def test_init_asks_three_questions(model, monkeypatch):
    monkeypatch.setattr("qeval.cli.init._is_terminal", lambda: True)
    answers = f"nowhere\n{model}\ngtpq\ngptq:4\n\n"
    done = qeval("init", "-o", "b.yaml", input=answers)
    assert done.exit_code == 0, said(done)
    assert "neither a spec" in done.stderr and "did you mean 'gptq'" in done.stderr
    assert "- gptq: 4\n" in Path("b.yaml").read_text()
    assert "perplexity: {dataset: wikitext2}" in Path("b.yaml").read_text()


def test_init_says_what_it_needs_where_nobody_can_be_asked(model):
    done = qeval("init", model)
    assert said(done) == ["qeval init: give MODEL, -q and -t, or call it in a terminal, where it asks"]


def test_force_measures_again_and_keeps_what_was(model):
    line = ("run", model, "-t", TEXT, "--limit", "2", "--dtype", "float32", "--name", "f")
    assert qeval(*line).exit_code == 0
    (cell,) = Path("results/f/cells").iterdir()
    (cell / "samples.jsonl").write_text("old")
    forced = qeval(*line, "--force", "--verbose")
    assert forced.exit_code == 0 and "0 of 1 cells are done" in forced.stderr
    assert len(Path("results/f/records.jsonl").read_text().splitlines()) == 2
    assert (cell.with_name(f"{cell.name}.before-1") / "samples.jsonl").read_text() == "old"
    assert not (cell / "samples.jsonl").exists()
    assert "1 cells, 0 done" in qeval(*line, "--force", "--dry-run").stderr
    assert "1 of 1 cells are done" in qeval(*line).stderr


def test_quiet_says_only_what_failed(model):
    line = ("run", model, "-t", TEXT, "--limit", "2", "--dtype", "float32", "--quiet")
    done = qeval(*line)
    assert done.exit_code == 0 and done.stderr == "" and "gptq/file:text" in done.stdout
    failed = qeval(*line, "-q", "{copy: {fail: true}}")
    assert failed.exit_code == 3 and "build failed" in failed.stderr and "none" not in failed.stderr
    assert said(qeval(*line, "-v")) == ["--quiet and --verbose: give one of them"]
