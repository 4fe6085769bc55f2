"""For the tests of AutoGPTQ and AutoAWQ: a build job in the library's environment, and how the built
model predicts. The environments are made by hand: `qeval env create auto-gptq` (or auto-awq)."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qeval.core.artifact import Artifact, ModelRef
from qeval.core.errors import UsageError
from qeval.core.settings import EngineSettings, default_cache_dir
from qeval.envs.build import python_of
from qeval.jobs.executor import LocalExecutor
from qeval.jobs.job import Job

CACHE = default_cache_dir().expanduser().resolve()  # the user's own: read before a test hides it


@pytest.fixture
def model_of(tmp_path: Path):
    """A float model of linears of given shapes, as a ModelRef; its weights are zeros."""

    def make(shapes: dict[str, tuple[int, int]], dtype: str = "bfloat16") -> ModelRef:
        folder = tmp_path / "shapes"
        folder.mkdir()
        header, end = {}, 0
        for name, shape in shapes.items():
            start, end = end, end + 2 * shape[0] * shape[1]
            header[f"{name}.weight"] = {
                "dtype": "BF16",
                "shape": shape,
                "data_offsets": (start, end),
            }
        text = json.dumps(header).encode()
        head = len(text).to_bytes(8, "little") + text
        (folder / "model.safetensors").write_bytes(head + bytes(end))
        (folder / "config.json").write_text('{"model_type": "llama"}')
        (folder / "tokenizer.json").write_text("{}")
        return ModelRef("m", folder, "sha256:0", dtype)

    return make


@pytest.fixture
def archived(tmp_path: Path) -> "Archived":
    return Archived(tmp_path)


class Archived:
    """One library's environment, a tiny model for it, its build and what came of it, in ``folder``."""

    cache = CACHE

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = folder / "model"

    def python(self, name: str) -> Path:
        try:
            return python_of(name, CACHE)
        except UsageError as err:
            pytest.skip(str(err))

    def make_model(self, **config: object) -> None:
        """Two blocks of hidden size 256, that groups of 128 divide."""
        from tiny_models import make_tiny_llama

        wide = {"hidden_size": 256, "intermediate_size": 512, "initializer_range": 0.05}
        make_tiny_llama(self.model, dtype="float16", **wide, **config)

    def build(self, method: str, python: Path, **options: object):
        """Quantize with windows of a text made here; the job's result and the steps it told."""
        return build(method, self.model, self.folder, python, **options)

    def divergence(self, artifact: Artifact) -> float:
        return divergence(artifact, self.model, self.folder)


def build(method: str, model: Path, folder: Path, python: Path, **options):
    """Quantize with windows of a text made here; the job's result and the steps it told."""
    text = folder / "text.txt"
    text.write_text(
        "\n".join(f"after {i} comes {i + 1}, and {i * i} is its square" for i in range(2000))
    )
    calibration = {"dataset": f"file:{text}", "n_samples": 8, "seq_len": 64}
    out = folder / "artifact"
    out.mkdir()
    ref = ModelRef("tiny", model, "sha256:0", "float16")
    told = {"calibration": calibration, **options}
    settings = EngineSettings(dtype="float16")
    job = Job("build", "k" * 64, "t", ref, method, told, out, CACHE, None, settings, python=python)
    steps = []
    result = LocalExecutor(folder / "jobs").run(job, 300, lambda *step: steps.append(step))
    return result, steps


def divergence(artifact: Artifact, model: Path, folder: Path) -> float:
    """Mean KL divergence (nats) of the artifact's predictions from the float model's, on 4 x 64 ids.

    In a process of its own: GPTQModel changes transformers when it is imported."""
    code = """
import json, sys
import numpy as np
from qeval.engines.hf import HfEngine
from qeval.engines.base import EngineSettings
from qeval.quant.base import Artifact
ids = np.random.default_rng(0).integers(0, 512, (4, 64)).tolist()
for name, dtype in (("float", "float32"), ("packed", "float16")):
    artifact = Artifact.from_json(json.loads(open(f"{sys.argv[1]}/{name}.json").read()))
    lm = HfEngine.open(artifact, EngineSettings(device="cpu", dtype=dtype))
    np.save(f"{sys.argv[1]}/{name}.npy", np.stack([lm.logits(row) for row in ids]))
"""
    whole = Artifact(model, "hf", False, 0, 0, None, None)
    for name, opened in {"float": whole, "packed": artifact}.items():
        (folder / f"{name}.json").write_text(json.dumps(opened.to_json()))
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    a, b = (_log_softmax(np.load(folder / f"{name}.npy")) for name in ("float", "packed"))
    return float((np.exp(a) * (a - b)).sum(-1).mean())


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    return wide - np.logaddexp.reduce(wide, axis=-1, keepdims=True)
