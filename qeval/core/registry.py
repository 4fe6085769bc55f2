"""Names to ``module:attribute``, imported on first use; third parties add theirs by entry points.

The groups are ``qeval.methods``, ``qeval.engines`` and ``qeval.tasks``. Nothing heavy is imported
here: a listed module must be importable without torch, transformers or llama_cpp.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Literal

from qeval.core.errors import UsageError, did_you_mean

Group = Literal["methods", "engines", "tasks"]

BUILT_IN: dict[Group, dict[str, str]] = {
    "methods": {
        "none": "qeval.quant.none:Unquantized",
        "rtn": "qeval.quant.rtn:Rtn",
        "gptq": "qeval.quant.gptq:Gptq",
        "awq": "qeval.quant.awq:Awq",
        "gguf": "qeval.quant.gguf:Gguf",
        "bitsandbytes": "qeval.quant.bitsandbytes:BitsAndBytes",
        "hqq": "qeval.quant.hqq:Hqq",
        "torchao": "qeval.quant.torchao:TorchAo",
        "quanto": "qeval.quant.quanto:Quanto",
        "auto-round": "qeval.quant.auto_round:AutoRound",
        "compressed-tensors": "qeval.quant.compressed_tensors:CompressedTensors",
        "quantease": "qeval.quant.quantease:QuantEase",
        "spqr": "qeval.quant.spqr:Spqr",
        "smoothquant": "qeval.quant.smoothquant:SmoothQuant",
        "checkpoint": "qeval.quant.checkpoint:Checkpoint",
    },
    "engines": {
        "hf": "qeval.engines.hf:HfEngine",
        "llamacpp": "qeval.engines.llamacpp:LlamaCppEngine",
    },
    "tasks": {
        "perplexity": "qeval.tasks.perplexity:Perplexity",
        "humaneval": "qeval.tasks.coding.humaneval:HumanEval",
        "mbpp": "qeval.tasks.coding.mbpp:Mbpp",
        "speed": "qeval.tasks.speed:Speed",
        "tensor_stats": "qeval.tasks.tensor_stats:TensorStats",
    },
}


@cache
def names(group: Group) -> dict[str, str]:
    """All registered names of a group with their targets; a built-in name cannot be replaced."""
    found = {e.name: e.value for e in entry_points(group=f"qeval.{group}")}
    return {**found, **BUILT_IN[group]}


def lookup(group: Group, name: str) -> Any:
    """The class behind a name (methods and tasks are used as instances without state).

    Raises:
        UsageError: nobody registered the name; the message suggests the closest one.
    """
    known = names(group)
    if name not in known:
        raise UsageError(f"unknown {group[:-1]} {name!r}{did_you_mean(name, known)}")
    module, _, attribute = known[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def method(name: str) -> Any:
    return lookup("methods", name)()


def task(name: str) -> Any:
    return lookup("tasks", name)()


def engine(name: str) -> Any:
    return lookup("engines", name)
