"""A job file is read as it was written, and so is one of 0.1.0."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qeval.core.artifact import Artifact, ModelRef
from qeval.core.execution import Execution
from qeval.core.settings import EngineSettings
from qeval.jobs.job import Job

RUNNING = {
    "kernel": "torch",
    "activations": {"num_bits": 8, "granularity": "token", "symmetric": True},
    "kv_cache": {"num_bits": 4, "group_size": 32},
}
JOB = Job(
    kind="eval",
    key="k",
    title="t",
    model=ModelRef("m", Path("/m"), "sha256:0", "float32"),
    name="perplexity",
    options={"dataset": "wikitext2"},
    out=Path("/out"),
    cache_dir=Path("/cache"),
    data_dir=None,
    settings=EngineSettings("cpu", "float32", execution=Execution.from_json(RUNNING)),
    artifact=Artifact(Path("/m"), "hf", False, 1, 1, 4.0, 4.0, details={"type": "Q4_0"}),
    python=Path("/env/bin/python"),
)


def test_a_job_is_read_as_it_was_written():
    assert Job.from_json(JOB.to_json()) == JOB


@pytest.mark.parametrize("how", [{}, *({key: RUNNING[key]} for key in RUNNING), {"tiles": [1, 2]}])
def test_how_weights_run_keeps_every_key_and_adds_none(how):
    """Its JSON is in the keys of cells. ``tiles``: of a third party's method, for its own engine."""
    assert Execution.from_json(how).to_json() == how


def test_a_job_file_of_0_1_0_had_how_weights_run_in_the_artifact():
    data = json.loads(JOB.to_json())
    data["artifact"]["details"]["execution"] = data["settings"].pop("execution")
    assert Job.from_json(json.dumps(data)) == JOB
    del data["artifact"]["details"]["execution"]
    plain = replace(JOB, settings=replace(JOB.settings, execution=Execution()))
    assert Job.from_json(json.dumps(data)) == plain
