"""The runner's jobs, with an executor that runs nothing."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from qeval.core.settings import EngineSettings, RunSettings
from qeval.jobs.executor import OnProgress
from qeval.jobs.job import Job, JobResult
from qeval.jobs.runner import Runner
from qeval.plan.spec import load_spec
from qeval.plan.survey import Step, survey
from qeval.store.records import Store
from qeval.worker import _guarded

SPEC = """\
name: t
models:
  - {{id: {0}, dtype: float16, trust_remote_code: true}}
  - {0}
dtype: float32
quantizations: [none]
tasks: [{{perplexity: {{dataset: pydoc}}}}]
device: cpu
batch_size: 3
"""


class Keeps:
    """Keeps the jobs; answers every one with an empty success."""

    def __init__(self):
        self.jobs: list[Job] = []

    def run(self, job: Job, timeout: float | None, on_progress: OnProgress) -> JobResult:
        self.jobs.append(Job.from_json(job.to_json()))  # as a worker would read it
        assert self.jobs[-1] == job
        return JobResult("ok")


class Silent:
    def job_started(self, title): ...
    def job_progress(self, done, total, unit): ...
    def build_ended(self, record): ...
    def cell_ended(self, record): ...


def steps(path: Path, settings: RunSettings) -> list[Step]:
    found = survey(load_spec(path), settings, {})
    assert not found.problems
    return found.to_do({})


def test_a_job_runs_in_the_dtype_and_with_the_trust_of_its_own_model(tiny_llama: Path, tmp_path: Path):
    path = tmp_path / "t.yaml"
    path.write_text(SPEC.format(tiny_llama))
    executor = Keeps()
    settings = RunSettings(tmp_path, None, EngineSettings(device="cpu", batch_size=3))
    records = Runner(Store(tmp_path / "r"), executor, settings, Silent()).run(steps(path, settings))
    found = [
        (j.settings.dtype, j.settings.trust_remote_code, j.settings.batch_size) for j in executor.jobs
    ]
    assert found == [("float16", True, 3), ("float32", False, 3)]
    assert len({r.key for r in records}) == 2  # the dtype is part of the key
    assert [r.artifact["bpw"] for r in records] == [16, 32]


class InProcess:
    """Runs jobs here and now, as a worker would; keeps their titles."""

    def __init__(self):
        self.titles: list[str] = []

    def run(self, job: Job, timeout: float | None, on_progress: OnProgress) -> JobResult:
        self.titles.append(job.title.rpartition("model · ")[2])
        return _guarded(Job.from_json(job.to_json()), on_progress)


LOW_BITS = """\
name: t
models: [{model}]
dtype: float32
quantizations:
  - rtn: {{num_bits: 4, group_size: 4}}
  - rtn: {{num_bits: 4, group_size: 4}}
    activations: 4
    kv_cache: {{num_bits: 2, group_size: 8}}
tasks:
  - perplexity: {{dataset: 'file:{text}', seq_len: 32, limit: 4}}
  - speed: {{prefill_tokens: 16, decode_prompt: 4, new_tokens: 4, batch_sizes: [1], repeats: 1}}
device: cpu
"""


def test_rows_that_differ_in_activations_and_kv_cache_share_one_build(tiny_llama: Path, tmp_path: Path):
    text, path, model = tmp_path / "text.txt", tmp_path / "t.yaml", tmp_path / "model"
    model.symlink_to(tiny_llama)
    text.write_text("the quick brown fox jumps over the lazy dog. " * 200)
    path.write_text(LOW_BITS.format(model=model, text=text))
    executor = InProcess()
    settings = RunSettings(tmp_path, None, EngineSettings(device="cpu"))
    records = Runner(Store(tmp_path / "r"), executor, settings, Silent()).run(steps(path, settings))
    ppl = "gptq/file:text.txt@32"
    assert executor.titles == [
        "RTN W4A16g4 · build",
        f"RTN W4A16g4 · {ppl}",
        f"RTN W4A4KV2g4 · {ppl}",
    ]
    plain, speed, low, low_speed = records
    assert [r.status for r in records] == ["ok", "skipped", "ok", "skipped"]
    assert "simulated weights run as" in speed.error
    assert "simulated activations or KV cache run as the float model does" in low_speed.error
    asked = {
        "activations": {"num_bits": 4, "granularity": "token", "symmetric": False},
        "kv_cache": {"num_bits": 2, "group_size": 8},
    }
    assert low.cell["quantization"]["label"] == "RTN W4A4KV2g4"
    assert low.cell["quantization"]["options"] == plain.cell["quantization"]["options"] | asked
    assert low.artifact["details"]["execution"] == asked
    assert low.artifact["path"] == plain.artifact["path"]
    rounded, floats = low.metrics[0].value, plain.metrics[0].value
    assert rounded != pytest.approx(floats, rel=0.02)  # of random weights it need not be worse
    assert low.memory.kv_cache == plain.memory.kv_cache * (16 * 2 + 2 * (16 + 2)) / (16 * 32)


def test_a_clock_that_is_set_back_gives_no_negative_times(tmp_path, monkeypatch):
    import time

    from qeval.jobs import job

    clock = iter([2e9, 1e9, 0.0, -1e9] + [-2e9] * 100)
    monkeypatch.setattr(job.time, "time", lambda: next(clock))
    watch = job.Stopwatch()
    time.sleep(0.01)
    timing = watch.timing()
    assert timing["start"] == 2e9 < timing["end"] < 2e9 + 3600
    assert 0 < watch.seconds() < 3600


BROKEN = """\
name: t
models: [{model}]
dtype: {dtype}
quantizations: [none, {{rtn: {{num_bits: 8, group_size: -1}}}}]
tasks:
  - perplexity: {{dataset: 'file:{text}', seq_len: 32, limit: 4}}
  - speed: {{prefill_tokens: 16, decode_prompt: 4, new_tokens: 4, batch_sizes: [1], repeats: 1}}
device: cpu
"""


def test_weights_that_are_not_finite_break_every_number_and_are_named(tiny_llama: Path, tmp_path: Path):
    """7e4 is infinity in float16. The float row measures nothing and says why; nothing is quantized."""
    text, path = tmp_path / "text.txt", tmp_path / "t.yaml"
    model = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    name = "model.layers.0.mlp.up_proj.weight"
    tensors = load_file(model / "model.safetensors")
    tensors[name][0, 0] = 7e4
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    text.write_text("the quick brown fox jumps over the lazy dog. " * 200)
    path.write_text(BROKEN.format(model=model, text=text, dtype="float16"))
    settings = RunSettings(tmp_path, None, EngineSettings(device="cpu"))
    store = Store(tmp_path / "r")
    records = Runner(store, InProcess(), settings, Silent()).run(steps(path, settings))
    found = {(r.cell["quantization"]["label"], r.cell["task"]["name"]): r for r in records}
    for task in ("perplexity", "speed"):
        floats, rounded = found["none", task], found["RTN W8A16", task]
        assert floats.status == "ok" and len(floats.metrics) == (1 if task == "perplexity" else 3)
        assert all(m.value is None and m.nonfinite == 1.0 for m in floats.metrics)
        assert f"weights that are not finite (NaN, infinity): {name}" in floats.notes
        assert rounded.status in ("failed", "skipped")
    assert f"{name} holds 7e+04, which is infinity in float16" in str(
        found["RTN W8A16", "perplexity"].error
    )
