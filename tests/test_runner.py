"""The runner's jobs, with an executor that runs nothing."""

from pathlib import Path

from qeval.cells import plan
from qeval.executor import OnProgress
from qeval.jobs import Job, JobResult
from qeval.lm import EngineSettings
from qeval.models import resolve_model
from qeval.runner import Runner, RunSettings
from qeval.spec import load_spec
from qeval.store import Store

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


def test_a_job_runs_in_the_dtype_and_with_the_trust_of_its_own_model(tiny_llama: Path, tmp_path: Path):
    path = tmp_path / "t.yaml"
    path.write_text(SPEC.format(tiny_llama))
    experiment = load_spec(path)
    models = [
        resolve_model(
            m.id,
            dtype=m.dtype or experiment.settings.dtype,
            cache_dir=tmp_path,
            trust_remote_code=m.trust_remote_code,
        )
        for m in experiment.models
    ]
    executor = Keeps()
    settings = RunSettings(tmp_path, None, EngineSettings(device="cpu", batch_size=3))
    cells = plan(experiment, models, tmp_path)
    records = Runner(Store(tmp_path / "r"), executor, settings, Silent()).run(cells)
    found = [
        (j.settings.dtype, j.settings.trust_remote_code, j.settings.batch_size) for j in executor.jobs
    ]
    assert found == [("float16", True, 3), ("float32", False, 3)]
    assert len({r.key for r in records}) == 2  # the dtype is part of the key
    assert [r.artifact["bpw"] for r in records] == [16, 32]
