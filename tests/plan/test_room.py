"""The disk that a run takes is known before its first job."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from in_process import InProcess

from qeval.cli.run import run_spec
from qeval.core.artifact import ModelRef
from qeval.core.settings import EngineSettings, RunSettings
from qeval.core.units import human_bytes
from qeval.models.told import told_vocabulary
from qeval.plan.spec import load_spec
from qeval.plan.survey import survey
from qeval.store.references import References

SPEC = """\
name: s
models: [{model}]
dtype: float32
device: cpu
quantizations: [none, {{rtn: {{num_bits: 8, group_size: 4}}}}]
tasks:
  - divergence: {{dataset: 'file:text.txt', seq_len: 64}}
  - divergence: {{dataset: 'file:text.txt', seq_len: 32, protocol: gptq, limit: 3}}
defaults:
  divergence: {{floors: [], baseline_from: {where}}}
"""


@pytest.fixture
def write(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("qeval.jobs.executor.LocalExecutor", InProcess)
    Path("text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 60)

    def made(where: str = "cache") -> Path:
        path = Path("s.yaml")
        path.write_text(SPEC.format(model=tiny_llama, where=where))
        return path

    return made


def test_predictions_take_what_was_announced(write, capsys, monkeypatch, tmp_path):
    """And nothing more the second time."""
    free = SimpleNamespace(free=1000)
    monkeypatch.setattr("qeval.plan.preflight.shutil.disk_usage", lambda _: free)
    assert run_spec(write(), dry_run=True).exit_code == 1
    said = capsys.readouterr()
    assert "refused" in said.out
    assert "set a lower `limit` for divergence" in said.err and said.err.count("cache:") == 1
    free.free = 2**40
    experiment = load_spec(Path("s.yaml"))
    settings = RunSettings(tmp_path / "cache", None, EngineSettings(device="cpu"))
    announced = survey(experiment, settings, {}).room
    assert len(announced.predictions) == 2 and len(announced.builds) == 1
    assert f"({human_bytes(sum(announced.predictions.values()))})" in announced.what
    assert "the baseline's predictions (" in said.err
    assert run_spec(Path("s.yaml"), cache_dir=tmp_path / "cache").exit_code == 0
    kept = {key: (tmp_path / "cache/references" / key / "codes") for key in announced.predictions}
    assert {key: path.stat().st_size for key, path in kept.items()} == dict(announced.predictions)
    assert len(References(tmp_path / "cache").sizes()) == 2
    assert survey(experiment, settings, {}).room.predictions == {}


def test_two_models_side_by_side_keep_nothing(write, monkeypatch):
    free = SimpleNamespace(free=2**20)
    monkeypatch.setattr("qeval.plan.preflight.shutil.disk_usage", lambda _: free)
    assert run_spec(write("cache"), dry_run=True).exit_code == 1
    assert run_spec(write("live"), dry_run=True).exit_code == 0


def test_the_vocabulary_is_that_of_the_file_or_the_folder(tiny_llama, tmp_path):
    assert told_vocabulary(ModelRef("m", tiny_llama, "sha256:0", "float32")) == 512
    assert told_vocabulary(ModelRef("m", tmp_path, "sha256:0", "float32")) is None


def test_the_vocabulary_of_a_gguf_file(tiny_f32):
    assert told_vocabulary(ModelRef("m", tiny_f32.path, "sha256:0", "float32")) == 512
