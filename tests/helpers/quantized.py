"""Tiny models quantized by every library and run by qeval's engine, for the tests of several files.

``get()`` is one ``Quantized`` a session. It starts make_quantized.py, which does a step when the first
test asks for what comes of it. Nothing here imports torch.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

Logits = NDArray[np.float32]
MODELS = ("llama", "starcoder2", "mixtral", "hunyuan", "neox")
UNLIKE = ("mixtral", "hunyuan", "neox")  # transformers names their weights otherwise than their files
ENOUGH = {"n_samples": 16, "seq_len": 64}  # 1024 tokens: more than any linear has inputs
LONG = {"n_samples": 2, "seq_len": 600}  # longer than the models' 512 positions
SHORT = {"n_samples": 4, "seq_len": 32}  # AWQ's search for clips takes a time that grows with them
NO_TEXT = {"dataset": "file:not-there.txt"}
FEW = {"n_samples": 1, "seq_len": 11}  # so few that an expert of Mixtral's four sees none


@dataclass(frozen=True)
class Build:
    model: str
    method: str
    options: dict[str, Any]


def _gptq(model: str, **options: Any) -> Build:
    return Build(model, "gptq", {"calibration": ENOUGH, **options})


def _ct(model: str, **options: Any) -> Build:
    return Build(model, "compressed-tensors", options)


def _round(model: str, **options: Any) -> Build:
    return Build(model, "auto-round", {"calibration": SHORT, **options})


LABORATORY = {  # qeval's own GPTQ, packed; beside each, NAME-simulated: the same, not packed
    "llama-lab-2": {"num_bits": 2, "group_size": 32, "symmetric": False, "act_order": True},
    "llama-lab-3": {"num_bits": 3, "group_size": -1},
    "llama-lab-4": {"num_bits": 4},
    "llama-lab-8": {"num_bits": 8, "group_size": 64, "symmetric": False},
    "starcoder2-lab-4": {"num_bits": 4, "group_size": 64, "symmetric": False, "act_order": True},
}


def _laboratory() -> Iterator[tuple[str, Build]]:
    for name, options in LABORATORY.items():
        model = name.partition("-")[0]
        yield name, _gptq(model, backend="laboratory", format="gptq", **options)
        yield f"{name}-simulated", _gptq(model, backend="laboratory", **options)


BUILDS = {
    "llama-gptq-8": _gptq("llama", num_bits=8),
    "llama-gptq-4": _gptq("llama", num_bits=4),
    "llama-gptq-3": _gptq("llama", num_bits=3, group_size=-1, act_order=True, symmetric=False),
    "llama-gptq-damped": _gptq("llama", percdamp=1e-7, calibration={"n_samples": 1, "seq_len": 16}),
    "starcoder2-gptq-8": _gptq("starcoder2", num_bits=8, calibration=LONG),
    "starcoder2-gptq-4": _gptq("starcoder2", num_bits=4),
    "mixtral-gptq-8": _gptq("mixtral", num_bits=8, group_size=32, calibration=FEW),
    "unknown-gptq-4": _gptq("unknown"),
    "hunyuan-gptq-8": _gptq("hunyuan", num_bits=8, group_size=32),
    "ten-gptq-4": _gptq("llama", calibration={"n_samples": 1, "seq_len": 10}),
    "short-gptq-4": _gptq("llama", calibration={"dataset": "file:short.txt", "n_samples": 1}),
    "llama-awq-4": Build("llama", "awq", {"calibration": SHORT}),
    "starcoder2-awq-4": Build("starcoder2", "awq", {"calibration": SHORT}),
    "llama-bnb-8": Build("llama", "bitsandbytes", {"num_bits": 8}),
    "llama-bnb-4": Build("llama", "bitsandbytes", {"num_bits": 4, "double_quant": True}),
    "starcoder2-bnb-4": Build("starcoder2", "bitsandbytes", {"num_bits": 4, "type": "fp4"}),
    "hunyuan-bnb-4": Build("hunyuan", "bitsandbytes", {"num_bits": 4}),
    "hunyuan-hqq-8": Build("hunyuan", "hqq", {"num_bits": 8, "group_size": 32}),
    "neox-hqq-8": Build("neox", "hqq", {"num_bits": 8, "group_size": 32}),
    "llama-hqq-8": Build("llama", "hqq", {"num_bits": 8}),
    "llama-hqq-4": Build("llama", "hqq", {"num_bits": 4}),
    "starcoder2-hqq-3": Build("starcoder2", "hqq", {"num_bits": 3}),
    "llama-torchao-int8wo": Build("llama", "torchao", {"scheme": "int8wo", "group_size": 64}),
    "hunyuan-torchao-int8wo": Build("hunyuan", "torchao", {"scheme": "int8wo"}),
    "llama-torchao-fp8wo": Build("llama", "torchao", {"scheme": "fp8wo"}),
    "starcoder2-torchao-int8dyn": Build("starcoder2", "torchao", {"scheme": "int8dyn"}),
    "llama-torchao-int4wo": Build("llama", "torchao", {"scheme": "int4wo"}),
    "llama-torchao-fp8dyn": Build("llama", "torchao", {"scheme": "fp8dyn"}),
    "hunyuan-quanto-8": Build("hunyuan", "quanto", {"weights": "int8"}),
    "neox-quanto-8": Build("neox", "quanto", {"weights": "int8"}),
    "llama-quanto-8": Build("llama", "quanto", {"weights": "int8"}),
    "llama-quanto-4": Build("llama", "quanto", {"weights": "int4"}),
    "starcoder2-quanto-float8": Build("starcoder2", "quanto", {"weights": "float8"}),
    "llama-ct-4": _ct("llama", algorithm="gptq", calibration=ENOUGH),
    "llama-ct-rtn": _ct("llama"),
    "hunyuan-ct-rtn": _ct("hunyuan", scheme="W8A16", group_size=32),
    "mixtral-ct-rtn": _ct("mixtral", scheme="W8A16", group_size=32),
    "stacked-ct-rtn": _ct("stacked", scheme="W8A16", group_size=32),
    "llama-ct-fp8": _ct("llama", scheme="FP8"),
    "starcoder2-ct-awq": _ct(
        "starcoder2", scheme="W4A16_ASYM", algorithm="awq", group_size=64, calibration=SHORT
    ),
    "starcoder2-ct-w8a8": _ct(
        "starcoder2", scheme="W8A8", algorithm="smoothquant+gptq", calibration=ENOUGH
    ),
    "hunyuan-round-0": _round("hunyuan", num_bits=8, group_size=32, iters=0, calibration=NO_TEXT),
    "llama-round-4": _round("llama", iters=4),
    "starcoder2-round-4": _round("starcoder2", iters=1, symmetric=False, group_size=64),
    **dict(_laboratory()),
}


@dataclass(frozen=True)
class Variant:
    """A copy of a built checkpoint, changed, or on another kernel."""

    of: str
    change: str = ""  # remove | add | bin | cut
    tensor: str = ""
    kernel: str = "auto"
    value: float = 1.0  # of what is added
    merged: bool = False  # as on a GPU


_MLP = "model.layers.1.mlp"
VARIANTS = {
    "gptq-on-torch": Variant("llama-gptq-4", kernel="torch"),
    "gptq-on-marlin": Variant("llama-gptq-4", kernel="marlin"),
    "gptq-merged": Variant("llama-gptq-4", merged=True),
    "awq-merged": Variant("starcoder2-awq-4", merged=True),
    "gptq-in-bin": Variant("llama-gptq-4", "bin"),
    "gptq-cut": Variant("llama-gptq-4", "cut"),
    "gptq-without-qweight": Variant("llama-gptq-4", "remove", f"{_MLP}.up_proj.qweight"),
    "gptq-without-norm": Variant("llama-gptq-4", "remove", "model.norm.weight"),
    "gptq-without-bias": Variant("starcoder2-gptq-4", "remove", f"{_MLP}.c_fc.bias"),
    "gptq-with-more": Variant("llama-gptq-4", "add", f"{_MLP}.extra.weight"),
    "gptq-with-bias": Variant("llama-gptq-4", "add", f"{_MLP}.down_proj.bias"),
    "gptq-with-zeros": Variant("llama-gptq-4", "add", f"{_MLP}.down_proj.bias", value=0.0),
    "awq-on-torch": Variant("llama-awq-4", kernel="torch"),
    "awq-by-transformers": Variant("starcoder2-awq-4", "transformers"),
}

PLAIN = tuple(
    f"{model}-{kind}"
    for model, kinds in {
        "llama": ("gptq-8", "gptq-4", "gptq-3", "awq-4", "lab-2", "lab-3", "lab-4", "lab-8"),
        "starcoder2": ("gptq-8", "gptq-4", "awq-4", "lab-4"),
    }.items()
    for kind in kinds
)
"""What is loaded without qeval, too."""

_NEEDS = {  # method -> extra, module
    "gptq": ("gptqmodel", "gptqmodel"),
    "awq": ("gptqmodel", "gptqmodel"),
    "bitsandbytes": ("bitsandbytes", "bitsandbytes"),
    "hqq": ("hqq", "hqq"),
    "torchao": ("torchao", "torchao"),
    "quanto": ("quanto", "optimum.quanto"),
    "auto-round": ("auto-round", "auto_round"),
    "compressed-tensors": ("compressed-tensors", "llmcompressor"),
}


def random_windows(n: int, length: int, seed: int) -> list[list[int]]:
    windows: list[list[int]] = np.random.default_rng(1000 + seed).integers(0, 512, (n, length)).tolist()
    return windows


def probe_ids() -> list[list[int]]:
    """What every model is asked about: 4 x 64 token ids that no calibration saw."""
    windows: list[list[int]] = np.random.default_rng(0).integers(0, 512, (4, 64)).tolist()
    return windows


def divergence(wanted: Logits, found: Logits) -> float:
    """Mean KL divergence (nats) of predictions, from their logits."""
    a, b = (x - np.logaddexp.reduce(x, -1, keepdims=True) for x in map(np.float64, (wanted, found)))
    return float((np.exp(a) * (a - b)).sum(-1).mean())


def distance(wanted: Logits, found: Logits) -> float:
    """||found - wanted|| / ||wanted||."""
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def _logits(file: Path) -> Logits:
    found: Logits = np.load(file)
    return found


def _data_bytes(file: Path) -> int:
    if file.suffix == ".safetensors":
        with file.open("rb") as handle:
            header: int = struct.unpack("<Q", handle.read(8))[0]
        return file.stat().st_size - 8 - header
    with zipfile.ZipFile(file) as archive:
        return sum(i.file_size for i in archive.infolist() if "/data/" in i.filename)


class Quantized:
    """What came of each build and run, by its name in BUILDS or VARIANTS."""

    distance = staticmethod(distance)
    probe_ids = staticmethod(probe_ids)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._done: dict[str, int] = {}
        self._process: subprocess.Popen[str] | None = None

    def step(self, step: str) -> int:
        """The exit status of a step of make_quantized.py, which is done once."""
        if step not in self._done:
            process = self._start()
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(f"{step}\n")
            process.stdin.flush()
            self._done[step] = int(process.stdout.readline() or "1")
        return self._done[step]

    def artifact(self, name: str) -> Any:
        from qeval.core.artifact import Artifact

        return Artifact.from_json(self._built(name))

    def steps(self, name: str) -> list[list[Any]]:
        """What the build told of its progress."""
        self._built(name)
        steps: list[list[Any]] = json.loads((self.folder / f"{name}.steps.json").read_text())
        return steps

    def data_bytes(self, name: str) -> int:
        """What the build's weight files hold but their headers: from their sizes, not their tensors."""
        from qeval.models.weights import weight_files

        self._built(name)
        return sum(_data_bytes(file) for file in weight_files(self.folder / name / "model"))

    def build_error(self, name: str) -> str:
        """``UsageError: message`` that the build ended with."""
        return str(self._built(name, failed=True)["error"])

    def run(self, name: str) -> dict[str, Any]:
        return self._ran(name)

    def run_error(self, name: str) -> str:
        return str(self._ran(name, failed=True)["error"])

    def logits(self, name: str) -> Logits:
        """[4, 64, 512] for ``probe_ids``; ``llama-float32`` and the like are the float models'."""
        self._ran(name)
        return _logits(self.folder / f"{name}.npy")

    def weights(self, name: str) -> dict[str, dict[str, float]]:
        """What make_quantized.py's ``weigh`` says of each quantized linear."""
        self._built(name)
        method = BUILDS[name].method
        step = "weigh" if method in ("gptq", "awq") else "run"
        return self._json(f"{step} {method}", f"{name}.weights.json")

    def twin(self, name: str) -> Logits:
        """The logits of a float model with the weights that the packed one stands for."""
        self.weights(name)
        return _logits(self.folder / f"{name}.twin.npy")

    def plain(self, name: str) -> tuple[dict[str, Any], Logits]:
        """What transformers alone found, and its logits."""
        self._built(name)
        found = self._json(f"plain {BUILDS[name].method}", f"{name}.plain.json")
        return found, _logits(self.folder / f"{name}.plain.npy")

    def divergence(self, name: str) -> float:
        """From the float model in float32."""
        model = BUILDS[name].model if name in BUILDS else name.split("-")[0]
        return divergence(self.logits(f"{model}-float32"), self.logits(name))

    def _built(self, name: str, failed: bool = False) -> dict[str, Any]:
        method = BUILDS[name].method
        self.require(method)
        self.step("float")
        return self._json(f"build {method}", f"{name}.json", failed)

    def _ran(self, name: str, failed: bool = False) -> dict[str, Any]:
        if name.partition("-")[2] in ("float32", "bfloat16"):
            return self._json("float", f"{name}.run.json", failed)
        built = VARIANTS[name].of if name in VARIANTS else name
        self._built(built)
        return self._json(f"run {BUILDS[built].method}", f"{name}.run.json", failed)

    def _json(self, step: str, name: str, failed: bool = False) -> dict[str, Any]:
        status, file = self.step(step), self.folder / name
        log = self.folder / f"{step}.log"
        tail = log.read_bytes()[-3000:].decode(errors="replace") if log.exists() else ""
        assert file.exists(), f"{step}: exit status {status}: {tail}"
        data: dict[str, Any] = json.loads(file.read_text())
        assert ("error" in data) == failed, f"{name}: {data.get('error', 'no error')}"
        return data

    @staticmethod
    def require(method: str) -> None:
        extra, module = _NEEDS[method]
        try:
            there = find_spec(module) is not None
        except ModuleNotFoundError:
            there = False
        if not there:
            pytest.skip(f"{module} is not installed: pip install 'qeval[{extra}]'")

    def _start(self) -> subprocess.Popen[str]:
        if self._process is None:
            script = Path(__file__).with_name("make_quantized.py")
            environment = {
                "CUDA_VISIBLE_DEVICES": "",
                "HF_HUB_OFFLINE": "1",
                "GPTQMODEL_CPU_WORKERS": "2",
                "OMP_NUM_THREADS": "1",  # cores are shared, and threads that wait burn them
            }
            with (self.folder / "stderr.log").open("w") as log:
                self._process = subprocess.Popen(
                    [sys.executable, script, self.folder],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    cwd=self.folder,  # where file:short.txt is
                    env={**os.environ, **environment},
                )
        return self._process

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)


@functools.cache
def get() -> Quantized:
    found = Quantized(Path(tempfile.mkdtemp(prefix="qeval-quantized-")))
    atexit.register(found.close)
    return found
