"""Loading packed checkpoints, each format by the library that runs it, and what that library chose.

``artifact.details["format"]`` names the format (quant/formats.py); ``details["execution"]`` holds what
the spec says about how it runs (a kernel). A loader returns a transformers model on the device, in eval
mode.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from qeval.engines.loading import load_model
from qeval.lm import EngineSettings
from qeval.quant.base import Artifact
from qeval.units import human_bytes

# Formats that transformers does not load right by itself: "module:function" with load()'s signature.
LOADERS = {
    "gptq": "qeval.engines.gptqmodel:load",
    "awq": "qeval.engines.gptqmodel:load",
}
_UNPACKED = 1.25  # resident over stored bytes from which a row says so; tables and padding stay below


def load(artifact: Artifact, settings: EngineSettings, device: Any) -> Any:
    """The model of a folder, packed or float.

    Raises:
        EngineError: the library cannot load it, or weights are missing or left over.
    """
    name = (artifact.details.get("format") or {}).get("name")
    if name in LOADERS:
        module, _, function = LOADERS[name].partition(":")
        return getattr(importlib.import_module(module), function)(artifact, settings, device)
    return load_model(artifact.path, settings.dtype, device, settings.trust_remote_code)


def kernels(model: Any) -> dict[str, int]:
    """The classes that stand where the model's linear layers were, and how many of each: what the
    library chose to run. Float ``Linear`` layers (the head, what was not quantized) are not counted."""
    from torch import nn

    found: Counter[str] = Counter()
    for module in model.modules():
        if next(module.children(), None) is not None or isinstance(module, nn.Embedding):
            continue
        weight = getattr(module, "weight", None)
        if type(module) is nn.Linear:
            if weight is not None and type(weight.data).__name__ != "Tensor":
                found[f"Linear({type(weight.data).__name__})"] += 1  # torchao: a tensor subclass
        elif hasattr(module, "in_features") and hasattr(module, "out_features"):
            found[type(module).__name__] += 1
    return dict(found)


def resident_bytes(model: Any) -> int:
    """Bytes of all tensors that the model's modules hold now: parameters, buffers, and what kernels
    keep beside them (unpacked copies, tables). Shared storages count once."""
    seen: dict[tuple[str, int], int] = {}
    for tensor in _tensors(model):
        storage = tensor.untyped_storage()
        seen[str(tensor.device), storage.data_ptr()] = storage.nbytes()
    return sum(seen.values())


def unpacked_note(artifact: Artifact, resident: int) -> str | None:
    """The line under the table where a kernel holds much more than the files do."""
    stored = artifact.weight_bytes + artifact.embedding_bytes
    if resident <= _UNPACKED * stored:
        return None
    held, size = human_bytes(resident), human_bytes(stored)
    return f"its kernel holds {held} of weights for {size} stored: unpacked in memory"


def _tensors(model: Any) -> Iterator[Any]:
    import torch

    for module in model.modules():
        for holder in (module._parameters, module._buffers, vars(module)):
            for value in list(holder.values()):
                if isinstance(value, torch.Tensor) and value.device.type != "meta":
                    yield from _plain(value)
        state = getattr(module, "state", None)  # bitsandbytes' int8 layers keep their weights there
        if state is not None and type(module).__module__.startswith("bitsandbytes"):
            for value in vars(state).values():
                if isinstance(value, torch.Tensor):
                    yield from _plain(value)


def _plain(tensor: Any) -> Iterator[Any]:
    """The tensors inside a tensor subclass (torchao, quanto), or the tensor itself."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None or type(tensor).__name__ in ("Tensor", "Parameter"):
        yield tensor
        return
    for name in flatten()[0]:
        yield from _plain(getattr(tensor, name))
