"""Loading a model folder, packed ones by their format, and what the library that runs it chose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from qeval.core.artifact import Artifact
from qeval.core.settings import EngineSettings
from qeval.core.units import human_bytes
from qeval.formats.base import formats, registered
from qeval.models.loading import load_model
from qeval.models.weights import read_tensors

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_UNPACKED = 1.25  # resident over stored bytes from which a row says so; tables and padding stay below


def load(artifact: Artifact, settings: EngineSettings, device: torch.device) -> PreTrainedModel:
    """The model of a folder, packed or float: a transformers model on the device, in eval mode.

    Raises:
        ModelError: a file is damaged; libraries each say so in words of their own, or not at all.
        EngineError: the library cannot load it, or weights are missing or left over.
    """
    read_tensors(artifact.path)
    if artifact.trust_remote_code:
        settings = replace(settings, trust_remote_code=True)
    if artifact.format is not None:
        return registered(artifact.format).load(artifact, settings, device)
    return load_model(artifact.path, settings.dtype, device, settings.trust_remote_code)


def kernels(model: PreTrainedModel) -> dict[str, int]:
    """The classes that stand where the model's linear layers were, and how many of each: what the
    library chose to run. Float ``Linear`` layers (the head, what was not quantized) are not counted.

    ``Linear(Int8Tensor)``: the weight's class does the work. ``Linear(unpacked)``: compressed-tensors
    in transformers, which turns a layer into floats on its first use, ``Linear(packed)`` before that.
    """
    found: Counter[str] = Counter()
    for module in model.modules():
        if name := _kernel(module):
            found[name] += 1
    return dict(found)


def _kernel(module: torch.nn.Module) -> str | None:
    import torch
    from torch import nn

    if not (hasattr(module, "in_features") or hasattr(module, "infeatures")):  # auto-round's
        return None
    name, weight = type(module).__name__, getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor):  # of GPTQModel's torch kernel, a description
        weight = None
    if getattr(module, "quantization_scheme", None) is not None:
        floats = weight is not None and weight.element_size() > 1
        return f"{name}({'unpacked' if floats else 'packed'})"
    kind = "Tensor" if weight is None else type(weight.data).__name__
    if kind not in ("Tensor", "Parameter"):
        return f"{name}({kind})"
    own = type(module) is nn.Linear or type(module).__module__.startswith("transformers.models.")
    return None if own else name


def resident_bytes(model: PreTrainedModel) -> int:
    """Bytes of all tensors that the model's modules hold now: parameters, buffers, and what kernels
    keep beside them (unpacked copies, tables). Shared storages count once."""
    seen: dict[tuple[str, int], int] = {}
    for tensor in _tensors(model):
        storage = tensor.untyped_storage()
        seen[str(tensor.device), storage.data_ptr()] = storage.nbytes()
    return sum(seen.values())


def unpacked_note(artifact: Artifact, resident: int) -> str | None:
    """The line under the table where a kernel holds much more than the files do."""
    stored = artifact.stored_bytes
    if resident <= _UNPACKED * stored:
        return None
    held, size = human_bytes(resident), human_bytes(stored)
    return f"its kernel holds {held} of weights for {size} stored: unpacked in memory"


def nonfinite(model: PreTrainedModel) -> list[str]:
    """The names of weights and of what is stored beside them (scales, zero points) that are not finite,
    as they were loaded: float16 makes infinity of what is over 65,504."""
    return [name for name, tensor in _stored(model) if not _is_finite(tensor)]


def _stored(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Float tensors that come from files, by their parameter or module; what several names share once.
    Buffers that are not stored (masks with -inf, scratch space) are left out."""
    walk = _Walk()
    for name, module in model.named_modules():
        unsaved = module._non_persistent_buffers_set
        held = {k: v for k, v in module._buffers.items() if k not in unsaved}
        held = {
            **module._parameters,
            **held,
            "meta": getattr(module, "meta", None),
        }  # meta: HQQ's scales
        for key, value in held.items():
            for tensor in walk.within(value):
                if tensor.is_floating_point():
                    yield f"{name}.{key}", tensor


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.numel():
        return True
    if tensor.element_size() == 1:  # float8 has no order in torch
        tensor = tensor.float()
    low, high = tensor.aminmax()  # NaN where there is one; no mask of the tensor's size is made
    return bool(low.isfinite() & high.isfinite())


def _tensors(model: PreTrainedModel) -> Iterator[torch.Tensor]:
    """Every tensor that a module holds: as a parameter or buffer, as an attribute, in a dictionary
    (HQQ's scales), or on another object (bitsandbytes' states)."""
    walk = _Walk()
    for module in model.modules():
        for holder in (module._parameters, module._buffers):
            yield from walk.within(holder)
        others = {
            k: v for k, v in vars(module).items() if k not in ("_parameters", "_buffers", "_modules")
        }
        yield from walk.within(others)


class _Walk:
    """Gives every tensor once, wherever a value keeps it."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._packages = tuple(package for one in formats() for package in one.keeps_tensors)

    def within(self, value: object) -> Iterator[torch.Tensor]:
        import torch

        if isinstance(value, str | int | float | bool | type | torch.nn.Module):
            return
        if id(value) in self._seen:
            return
        if isinstance(value, torch.Tensor):
            self._seen.add(id(value))
            yield from _plain(value)
            if state := getattr(value, "quant_state", None):  # bitsandbytes: scales of a 4-bit weight
                yield from self.within(vars(state))
        elif isinstance(value, Mapping):  # compressed-tensors keeps parameters in one of its own
            for inner in list(value.values()):
                yield from self.within(inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                yield from self.within(inner)
        elif type(value).__module__.startswith(self._packages):
            self._seen.add(id(value))
            yield from self.within(vars(value))


def _plain(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensors inside a tensor subclass (torchao, quanto), or the tensor itself."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is not None and type(tensor).__name__ not in ("Tensor", "Parameter"):
        for name in flatten()[0]:
            yield from _plain(getattr(tensor, name))
    elif tensor.device.type != "meta":
        yield tensor
