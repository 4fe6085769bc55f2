"""What ``--dry-run`` prints is what the run then does, cell by cell, and both end alike."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from in_process import InProcess

from qeval.cli.run import run_spec
from qeval.core.errors import PreflightError
from qeval.core.record import Record
from qeval.store.records import Store

ROWS = [
    "copy: 8",
    "copy: {num_bits: 7, simulated: true, announced: true}",
    "copy: {num_bits: 6, simulated: true}",
    "copy: {num_bits: 5, fail: true}",
    "mute: 4",
    "here: weights.json",
]
TASKS = [
    "misbehave: {how: ok}",
    "misbehave: {how: raise}",
    "stopwatch: {}",
    "speed: {}",  # no engine here generates
]
ROWS_IN_THE_WAY = [
    "copy: {num_bits: 3, needs: no_such_module}",
    "copy: {num_bits: 2, reads: 'file:gone.txt'}",
    "far: 8",
    "here: gone.json",
    "old: 8",
    "copy: 8, kv_cache: 4",
]
TASKS_IN_THE_WAY = ["perplexity: {dataset: 'file:gone.txt'}"]


@pytest.fixture
def folder(plugin, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("qeval.jobs.executor.LocalExecutor", InProcess)
    Path("weights.json").write_text('{"num_bits": 8}')
    return tmp_path


def write(model: Path, rows: list[str], tasks: list[str]) -> Path:
    parts = {"quantizations": rows, "tasks": tasks}
    lists = (f"{key}: [{', '.join(f'{{{x}}}' for x in items)}]" for key, items in parts.items())
    path = Path("s.yaml")
    path.write_text("\n".join(["name: s", f"models: [{model}]", "dtype: float32", *lists]))
    return path


def some(pick: random.Random, pool: list[str]) -> list[str]:
    return pick.sample(pool, pick.randint(1, len(pool)))


def new_records(before: int) -> list[Record]:
    return Store("results/s").read()[before:]


def attempt(path: Path, only: list[str]) -> int:
    """The exit code of a run."""
    try:
        return run_spec(path, only=only).exit_code
    except PreflightError as err:
        return err.exit_code


@pytest.mark.parametrize("seed", range(24))
def test_a_run_does_what_its_dry_run_says(folder, tiny_llama, capsys, seed):
    pick = random.Random(seed)
    rows, tasks = some(pick, ROWS), some(pick, TASKS)
    attempt(write(tiny_llama, some(pick, ROWS), some(pick, TASKS)), [])  # what is there already
    if pick.random() < 0.3:
        rows.append(pick.choice(ROWS_IN_THE_WAY))
    if pick.random() < 0.15:
        tasks.append(pick.choice(TASKS_IN_THE_WAY))
    only = [pick.choice(["copy", "misbehave", "raise", "*"])] if pick.random() < 0.4 else []
    if not any(word.strip("*") in text for word in only for text in (*rows, *tasks)):
        only = []
    path, before = write(tiny_llama, rows, tasks), len(new_records(0))
    capsys.readouterr()
    said = run_spec(path, dry_run=True, only=only).exit_code
    lines = capsys.readouterr().out.splitlines()
    assert len(new_records(0)) == before
    code = attempt(path, only)
    new = new_records(before)
    done = {r.key[:12]: r for r in new if r.kind == "eval"}
    built = [r.cell["quantization"]["label"] for r in new if r.kind == "build"]
    assert len(built) == len(set(built))
    states = {line[:12]: (line[24:37].strip(), line[38:]) for line in lines}
    if any(state == "refused" for state, _ in states.values()):
        assert said == code == 1 and not new
        return
    to_build = set()
    for key, (state, name) in states.items():
        record = done.pop(key, None)
        if state == "done":
            assert record is None, name
            continue
        assert record is not None, name
        row = record.cell["quantization"]["label"]
        if state == "skip":
            assert record.status == "skipped" and f"({record.error[:70]}" in name
        elif state == "build, run":
            to_build.add(row)
            unsure = name.endswith("(skipped if the build gives simulated weights)")
            assert (record.status == "skipped") == (
                unsure and record.artifact is not None and record.artifact["simulated"]
            ), name
        else:
            assert state in ("cached, run", "run") and record.status in ("ok", "failed")
            assert "build failed" not in (record.error or "") and row not in built
    assert not done and set(built) == to_build
    fresh_failures = [r for r in new if r.status == "failed"]
    assert code == (3 if fresh_failures else said)
