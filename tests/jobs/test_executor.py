"""What a worker is started with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from qeval.core.artifact import ModelRef
from qeval.core.settings import EngineSettings
from qeval.jobs.executor import LocalExecutor
from qeval.jobs.job import Job


def test_libgomp_in_a_worker_knows_how_its_threads_wait(tiny_llama, tmp_path, monkeypatch):
    """It says so itself as torch loads it."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_DISPLAY_ENV", "VERBOSE")
    out = tmp_path / "out"
    out.mkdir()
    job = Job(
        kind="build",
        key="k" * 64,
        title="t",
        model=ModelRef("m", tiny_llama, "sha256:0", "float32"),
        name="rtn",
        options={"num_bits": 8},
        out=out,
        cache_dir=tmp_path,
        data_dir=None,
        settings=EngineSettings("cpu", "float32", n_threads=1),
    )
    result = LocalExecutor(tmp_path / "jobs").run(job, 300, lambda *_: None)
    assert (result.status, result.error) == ("ok", None)
    log = Path(str(result.log)).read_text(encoding="utf-8")
    assert "GOMP_SPINCOUNT = '1000'" in log
    assert "OMP_NUM_THREADS = '1'" in log


def test_an_hf_worker_leaves_out_what_no_model_here_needs(tiny_llama):
    """hqq brings torch's compiler. Each of the two takes longer to import than torch."""
    said = """
import sys
from pathlib import Path
from qeval.core.artifact import Artifact
from qeval.core.settings import EngineSettings
from qeval.engines.hf import HfEngine
artifact = Artifact(Path(sys.argv[1]), "hf", False, None, None, None, None)
HfEngine.open(artifact, EngineSettings("cpu", "float32", n_threads=1))
print(*{"torch", "hqq", "torch._inductor.compile_fx", "scipy.optimize"} & set(sys.modules))
"""
    run = subprocess.run(
        [sys.executable, "-c", said, str(tiny_llama)], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["torch"]
