"""Cells that are forks of one process are what they would be in an interpreter of their own."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from qeval.core.artifact import Artifact, ModelRef
from qeval.core.settings import EngineSettings
from qeval.jobs.executor import LocalExecutor
from qeval.jobs.job import Job
from qeval.jobs.zygote import Zygote
from qeval.worker import _guarded

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")


def cell(model: Path, folder: Path, limit: int) -> Job:
    return Job(
        kind="eval",
        key=f"{limit}" * 64,
        title="t",
        model=ModelRef("m", model, "sha256:0", "float32"),
        name="perplexity",
        options={"dataset": "pydoc", "seq_len": 128},
        out=folder,
        cache_dir=folder,
        data_dir=None,
        settings=EngineSettings("cpu", "float32", batch_size=limit, n_threads=1),
        artifact=Artifact(model, "hf", False, None, None, 32.0, 32.0),
        limit=limit,
    )


def plain(data: object) -> object:
    return json.loads(json.dumps(data))


def test_numbers_memory_and_logs_are_a_cells_own(tiny_llama: Path, tmp_path: Path):
    """Seconds long: torch and transformers are imported, once, in the process that is forked."""
    small, large = cell(tiny_llama, tmp_path, 1), cell(tiny_llama, tmp_path, 1000)
    before, between, after = small, large, replace(small, key="b" * 64)
    with LocalExecutor(tmp_path / "jobs") as executor:
        first, second, third = (executor.run(j, 300, lambda *_: None) for j in (before, between, after))
        (kept,) = executor._zygotes.values()
        assert kept.zygote.ready(0.0)  # they were its forks
    assert [r.status for r in (first, second, third)] == ["ok"] * 3
    alone = _guarded(Job.from_json(small.to_json()), lambda *_: None)
    assert first.payload["metrics"] == third.payload["metrics"] == plain(alone.payload["metrics"])
    assert second.payload["metrics"] != first.payload["metrics"]
    peaks = [r.memory["ram_peak"] / 2**20 for r in (first, second, third)]  # MiB
    assert peaks[1] > peaks[0] + 32  # a larger batch
    assert abs(peaks[0] - peaks[2]) < 8  # how much of libraries' files is resident varies
    assert first.provenance["argv"][0] == str(tmp_path / "jobs" / f"eval-{'1' * 16}.job.json")
    assert len({r.log for r in (first, second, third)}) == 3


def test_imports_that_start_threads_are_not_forked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A lock that such a thread holds would stay locked in the fork."""
    (tmp_path / "quiet.py").write_text("")
    (tmp_path / "busy.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(99,), daemon=True).start()\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    env = {**os.environ, "PYTHONPATH": path}
    found = {}
    for name in ("quiet", "busy"):
        zygote = Zygote(name, 1, env, tmp_path / f"{name}.log")
        found[name] = zygote.ready(300)
        zygote.close()
    assert found == {"quiet": True, "busy": False}
