"""`qeval prune`: what goes, what stays, and that no number is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from planned import plan
from program import qeval

from qeval.core.artifact import Artifact, ModelRef
from qeval.core.record import Metric, Record
from qeval.plan.spec import load_spec
from qeval.report.results import read_results
from qeval.store.artifacts import ArtifactCache
from qeval.store.records import Store

SPEC = """\
name: t
models: [m]
dtype: float32
quantizations: [{rtn: 6}, {rtn: 8}, {gguf: Q8_0}]
tasks: [{perplexity: {datasets: [wikitext2, ptb]}}]
"""
WEIGHTS = "w" * 1000


@pytest.fixture
def place(tmp_path) -> Path:
    """Results of SPEC in ``r``, and the cached models that they were measured on in ``cache``."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "llama"}))
    store, cache = Store(tmp_path / "r"), ArtifactCache(tmp_path / "cache")
    store.folder.mkdir()
    (store.folder / "spec.yaml").write_text(SPEC)
    experiment = load_spec(store.folder / "spec.yaml")
    for i, cell in enumerate(plan(experiment, [ModelRef("m", model, "x", "float32")], tmp_path)):
        key = cell.row.artifact_key
        if not (cache.folder / key).exists():
            with cache.building(key) as out:
                (out / "w").write_text(WEIGHTS)
                cache.publish(key, out, Artifact(out / "w", "hf", False, 1000, 0, 4, 4), {})
        made = {"path": str(cache.folder / key / "w")}
        metric = Metric("ppl", 20.0 + i, cell.task.label, n=2, values=(3.0, 3.1))
        store.append(Record("eval", cell.key, cell.describe(), "ok", (metric,), artifact=made))
        for path in (f"cells/{cell.key[:16]}/windows.jsonl", f"jobs/eval-{cell.key[:16]}.log"):
            (store.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (store.folder / path).write_text("x" * 100)
    return tmp_path


def prune(place: Path, *args: str, code: int = 0) -> dict:
    done = qeval(
        "prune", "r", "--cache-dir", "cache", "--format", "json", *(args or ("--yes",)), cwd=place
    )
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def numbers(folder: Path) -> dict[str, float | None]:
    return {r.key: r.metrics[0].value for r in read_results([folder]) if r.status == "ok"}


def everything(place: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in place.rglob("*") if p.is_file() and p.name != "lock"}


def test_nothing_goes_from_what_a_run_has_left(place):
    before = everything(place)
    for args in ((), ("--unlisted", "--yes")):
        found = prune(place, *args)
        assert not found["removed"] and found["bytes"] == 0
    assert everything(place) == before


def test_superseded_records_go_and_the_table_stays(place):
    store = Store(place / "r")
    first, second, third = store.read()[:3]
    again = replace(first, metrics=(replace(first.metrics[0], value=7.0),))
    store.append(again)
    store.append(replace(second, status="failed", metrics=(), error="no"))  # the number before is shown
    with store.path.open("ab") as file:
        file.write(b'{"torn\xff\n')
    store.append(third)
    for record in (first, second, third):
        aside = place / "r" / "cells" / f"{record.key[:16]}.before-1"
        aside.mkdir()
        (aside / "samples.jsonl").write_text("y" * 50)
    shown, lines = numbers(place / "r"), store.raw_lines()
    assert prune(place, "--dry-run")["superseded"]["records"] == 2
    assert store.raw_lines() == lines
    found = prune(place)
    assert found["superseded"] == {"records": 2, "bytes": len(lines[0]) + len(lines[2]) + 2}
    assert found["put_aside"]["bytes"] == 100 and found["bytes"] == 102 + len(lines[0] + lines[2])
    assert store.raw_lines() == [line for i, line in enumerate(lines) if i not in (0, 2)]
    assert numbers(place / "r") == shown and shown[first.key] == 7.0
    assert (place / "r" / "cells" / f"{second.key[:16]}.before-1").is_dir()  # of the number shown
    assert prune(place)["bytes"] == 0


def test_unlisted_cells_move_with_all_that_only_they_used(place):
    shown = numbers(place / "r")
    keys = {r.key: r.cell["quantization"]["label"] for r in Store(place / "r").read()}
    (place / "r" / "spec.yaml").write_text(SPEC.replace("{rtn: 8}, ", ""))
    assert prune(place)["bytes"] == 0  # not asked for
    assert (
        "2 cells that the spec does not have stay (--unlisted)"
        in qeval("prune", place / "r", "--dry-run", "--cache-dir", place / "cache").stdout
    )
    found = prune(place, "--unlisted", "--yes")
    assert found["unlisted"] | {"paths": 0} == {
        "records": 2,
        "rows": ["RTN W8A16"],
        "paths": 0,
        "bytes": 400,
    }
    assert len(found["cached"]["keys"]) == 1 and found["cached"]["bytes"] > len(WEIGHTS)
    left = {key: value for key, value in shown.items() if keys[key] != "RTN W8A16"}
    assert numbers(place / "r") == left and len(left) == 4
    assert all((place / "r" / "cells" / key[:16]).is_dir() == (key in left) for key in shown)
    assert not any((place / "cache" / "artifacts" / key).exists() for key in found["cached"]["keys"])
    with (place / "r" / "records.jsonl").open("ab") as file:  # as the page says
        file.write((place / "r" / "pruned.jsonl").read_bytes())
    assert numbers(place / "r") == shown


def test_a_cached_model_of_a_folder_beside_stays(place):
    beside = Store(place / "beside")
    beside.append(
        next(r for r in Store(place / "r").read() if r.cell["quantization"]["label"] == "RTN W8A16")
    )
    (place / "r" / "spec.yaml").write_text(SPEC.replace("{rtn: 8}, ", ""))
    found = prune(place, "--unlisted", "--yes")
    assert found["unlisted"]["records"] == 2 and found["cached"]["keys"] == []


def test_what_is_refused_is_one_line_and_changes_nothing(place):
    (place / "other.yaml").write_text(SPEC.replace("models: [m]", "models: [n]"))
    (place / "empty").mkdir()
    Store(place / "r").append(Store(place / "r").read()[0])
    before = everything(place)
    for args, code, said in [
        (("other.yaml", "--results", "r", "--unlisted", "--yes"), 2, "has none of its cells"),
        (("r", "--format", "json"), 2, "it cannot ask"),
        (("empty",), 1, "no records in"),
        (("empty", "--unlisted", "--yes"), 2, "has no spec.yaml: qeval prune SPEC --results empty"),
        (("r", "--results", "r"), 2, "is a results folder itself"),
        (("r",), 2, "nobody can be asked here"),
    ]:
        done = qeval("prune", *args, "--cache-dir", "cache", cwd=place)
        assert (done.returncode, done.stdout) == (code, ""), (args, done)
        assert said in done.stderr and len(done.stderr.splitlines()) == 1
    assert everything(place) == before


def test_a_folder_that_a_run_uses_is_left_alone(place):
    code = "import sys; from qeval.store.records import Store; lock = Store(sys.argv[1]).lock()"
    code += "; lock.__enter__(); print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, place / "r"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as run:
        assert run.stdout and run.stdout.readline() and run.stdin
        assert Store(place / "r").in_use()
        done = qeval("prune", "r", "--yes", "--cache-dir", "cache", cwd=place)
        run.stdin.write(b"\n")
        run.stdin.close()
    assert done.returncode == 1 and "another qeval run" in done.stderr
    assert not Store(place / "r").in_use()
