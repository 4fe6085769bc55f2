"""What the tests of the quantizing libraries share: the builds, and their results, made on request by
make_quantized.py, once a session."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CALIBRATION = {"n_samples": 16, "seq_len": 64}  # 1024 tokens: more than any linear has inputs
SHORT = {"n_samples": 4, "seq_len": 32}  # AWQ's search for clips takes a time that grows with them


@dataclass(frozen=True)
class Build:
    family: str  # built in one process
    model: str
    method: str
    options: dict[str, Any]


def _gptq(model: str, **options: Any) -> Build:
    return Build("gptq", model, "gptq", {"calibration": CALIBRATION, **options})


def _awq(model: str, **options: Any) -> Build:
    return Build("awq", model, "awq", {"calibration": SHORT, **options})


def _light(model: str, method: str, **options: Any) -> Build:
    return Build("light", model, method, options)


def _ct(model: str, **options: Any) -> Build:
    return Build("compressed-tensors", model, "compressed-tensors", options)


def _round(model: str, **options: Any) -> Build:
    return Build("auto-round", model, "auto-round", {"calibration": SHORT, **options})


BUILDS = {
    "llama-gptq-8": _gptq("llama", num_bits=8),
    "llama-gptq-4": _gptq("llama", num_bits=4),
    "llama-gptq-3": _gptq("llama", num_bits=3, group_size=-1, act_order=True, symmetric=False),
    "llama-gptq-damped": _gptq("llama", percdamp=1e-7, calibration={"n_samples": 1, "seq_len": 16}),
    "starcoder2-gptq-8": _gptq("starcoder2", num_bits=8),
    "starcoder2-gptq-4": _gptq("starcoder2", num_bits=4),
    "llama-awq-4": _awq("llama"),
    "starcoder2-awq-4": _awq("starcoder2"),
    "llama-bnb-8": _light("llama", "bitsandbytes", num_bits=8),
    "llama-bnb-nf4": _light("llama", "bitsandbytes", num_bits=4, double_quant=True),
    "starcoder2-bnb-fp4": _light("starcoder2", "bitsandbytes", num_bits=4, type="fp4"),
    "llama-hqq-8": _light("llama", "hqq", num_bits=8),
    "llama-hqq-4": _light("llama", "hqq", num_bits=4),
    "starcoder2-hqq-3": _light("starcoder2", "hqq", num_bits=3),
    "llama-torchao-int8wo": _light("llama", "torchao", scheme="int8wo", group_size=64),
    "llama-torchao-fp8wo": _light("llama", "torchao", scheme="fp8wo"),
    "starcoder2-torchao-int8dyn": _light("starcoder2", "torchao", scheme="int8dyn"),
    "llama-quanto-int8": _light("llama", "quanto", weights="int8"),
    "llama-quanto-int4": _light("llama", "quanto", weights="int4"),
    "starcoder2-quanto-float8": _light("starcoder2", "quanto", weights="float8"),
    "llama-ct-rtn": _ct("llama"),
    "llama-ct-gptq": _ct("llama", algorithm="gptq", calibration=CALIBRATION),
    "llama-ct-fp8": _ct("llama", scheme="FP8"),
    "starcoder2-ct-awq": _ct(
        "starcoder2", scheme="W4A16_ASYM", algorithm="awq", group_size=64, calibration=SHORT
    ),
    "starcoder2-ct-w8a8": _ct(
        "starcoder2", scheme="W8A8", algorithm="smoothquant+gptq", calibration=CALIBRATION
    ),
    "llama-round-4": _round("llama", iters=4),
    "starcoder2-round-4": _round("starcoder2", iters=0, symmetric=False, group_size=64),
}

FLOATS = {f"{m}-{d}": d for m in ("llama", "starcoder2") for d in ("float32", "bfloat16")}


@dataclass(frozen=True)
class Variant:
    """A copy of a built checkpoint, changed, or on another kernel."""

    of: str
    change: str = ""  # remove | add | bin | cut
    tensor: str = ""
    kernel: str = "auto"


_UP = "model.layers.1.mlp.up_proj"
VARIANTS = {
    "gptq-on-torch": Variant("llama-gptq-4", kernel="torch"),
    "gptq-on-marlin": Variant("llama-gptq-4", kernel="marlin"),
    "gptq-bin": Variant("llama-gptq-4", "bin"),
    "gptq-cut": Variant("llama-gptq-4", "cut"),
    "gptq-without-qweight": Variant("llama-gptq-4", "remove", f"{_UP}.qweight"),
    "gptq-without-norm": Variant("llama-gptq-4", "remove", "model.norm.weight"),
    "gptq-with-more": Variant("llama-gptq-4", "add", "model.layers.1.mlp.extra.weight"),
    "gptq-without-bias": Variant("starcoder2-gptq-4", "remove", "model.layers.1.mlp.c_fc.bias"),
    "gptq-with-bias": Variant("llama-gptq-4", "add", "model.layers.1.mlp.down_proj.bias"),
    "awq-on-torch": Variant("llama-awq-4", kernel="torch"),
}

PLAIN = (
    "llama-gptq-8",
    "llama-gptq-4",
    "llama-gptq-3",
    "starcoder2-gptq-8",
    "starcoder2-gptq-4",
    "llama-awq-4",
    "starcoder2-awq-4",
)


def random_windows(n: int, length: int, seed: int) -> list[list[int]]:
    return np.random.default_rng(1000 + seed).integers(0, 512, (n, length)).tolist()


def probe_ids() -> list[list[int]]:
    """What every model is asked about: 4 x 64 token ids that no calibration saw."""
    return np.random.default_rng(0).integers(0, 512, (4, 64)).tolist()


@dataclass
class Quantized:
    """Results by name. Each step is done when the first test asks for it."""

    folder: Path
    _process: subprocess.Popen[str] | None = None
    _done: dict[str, int] = field(default_factory=dict)
