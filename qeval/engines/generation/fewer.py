"""A model's forward in fewer operations, for a GPU: the same sums, launched less often.

A decode step of a large model is hundreds of products, and between them small operations that take as
long to start as to run. While ``Fewer.on`` is open

- linears that read the same input (the stages of models/architectures.py: q, k and v; gate and up) run
  as one product, where all of them are plain ones. Their weights become views of one tensor;
- a GELU (of tanh) that follows a linear of a plain MLP is applied by the product itself (cuBLASLt's
  epilogue), before its sum is rounded;
- rotary embeddings and norms, a dozen operations each, are compiled by torch.compile, each once for
  all layers: a second or two, where whole layers would take minutes.

A piece that does not compile runs as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from qeval.engines.generation.cache import has_triton
from qeval.models.architectures import ARCHITECTURES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ROTARY = "apply_rotary_pos_emb"  # what every family of transformers calls it


class Fewer:
    """Looks the model through once. On a CPU, or without Triton, there is nothing to change."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._patches: list[tuple[Any, str, object]] = []
        self._shared: list[_Shared] = []
        if model.device.type != "cuda" or not has_triton():
            return
        self._share(model)
        self._join(model)
        self._compile(model)

    @contextmanager
    def on(self) -> Iterator[None]:
        if not self._patches:
            yield
            return
        usual = [(owner, name, vars(owner).get(name)) for owner, name, _ in self._patches]
        try:
            for owner, name, what in self._patches:
                setattr(owner, name, what)
            with torch._dynamo.config.patch(suppress_errors=True):
                yield
        finally:
            for owner, name, what in usual:
                if what is None:
                    delattr(owner, name)  # an instance's own ``forward``: the class has one
                else:
                    setattr(owner, name, what)
            for shared in self._shared:
                shared.forget()

    def _share(self, model: PreTrainedModel) -> None:
        entry = ARCHITECTURES.get(str(model.config.model_type))
        if entry is None:
            return
        for block in model.get_submodule(entry.blocks):
            found = dict(block.named_modules())
            for stage in entry.stages:
                linears = [found[name] for name in stage if name in found]
                if len(linears) == len(stage) > 1 and _are_alike(linears):
                    shared = _Shared(cast(list[nn.Linear], linears))
                    self._shared.append(shared)
                    self._patches += [
                        (linear, "forward", partial(shared.output, i))
                        for i, linear in enumerate(linears)
                    ]

    def _join(self, model: PreTrainedModel) -> None:
        for module in model.modules():
            parts = [part for part in module.children() if not isinstance(part, nn.Dropout)]
            linears = [part for part in parts if type(part) is nn.Linear]
            gelus = [part for part in parts if _is_tanh_gelu(part)]
            if len(parts) != 3 or len(linears) != 2 or len(gelus) != 1:
                continue
            into, out_of = linears
            if into.out_features != out_of.in_features or into.in_features != out_of.out_features:
                continue
            if into.bias is not None and _is_plain(into) and _is_plain(gelus[0]):
                self._patches.append((into, "forward", partial(_linear_and_gelu, into)))
                self._patches.append((gelus[0], "forward", _as_it_is))

    def _compile(self, model: PreTrainedModel) -> None:
        homes = {type(module).__module__ for module in model.modules()}
        for home in sorted(homes):
            rotary = getattr(sys.modules[home], _ROTARY, None)
            if home.startswith("transformers.models.") and rotary is not None:
                self._patches.append((sys.modules[home], _ROTARY, torch.compile(rotary)))
        compiled: dict[type, Callable[..., Tensor]] = {}
        for module in model.modules():
            kind = type(module)
            if not kind.__name__.endswith("Norm") or not _is_plain(module):
                continue
            if kind not in compiled:
                compiled[kind] = torch.compile(kind.forward)
            self._patches.append((module, "forward", partial(compiled[kind], module)))


def _are_alike(linears: Sequence[nn.Module]) -> bool:
    """Whether they are plain linears that can be one."""
    kinds = {
        (x.bias is None, x.in_features, x.weight.dtype, x.weight.device)
        for x in linears
        if isinstance(x, nn.Linear)
    }
    return len(kinds) == 1 and all(type(x) is nn.Linear and _is_plain(x) for x in linears)


def _is_plain(module: nn.Module) -> bool:
    return not (module._forward_pre_hooks or module._forward_hooks)


def _is_tanh_gelu(module: nn.Module) -> bool:
    return type(module).__name__ in ("GELUTanh", "NewGELUActivation", "FastGELUActivation")


def _linear_and_gelu(linear: nn.Linear, x: Tensor) -> Tensor:
    rows = torch._addmm_activation(linear.bias, x.flatten(0, -2), linear.weight.t(), use_gelu=True)
    return rows.view(*x.shape[:-1], -1)


def _as_it_is(x: Tensor) -> Tensor:
    return x


class _Shared:
    """Linears with one weight, [sum of outputs, inputs], that all of them are views of."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        self._sizes = [linear.out_features for linear in linears]
        self._weight = torch.cat([linear.weight.data for linear in linears])
        self._bias = None
        if linears[0].bias is not None:
            self._bias = torch.cat([linear.bias.data for linear in linears])
        start = 0
        for linear, size in zip(linears, self._sizes, strict=True):
            linear.weight.data = self._weight[start : start + size]
            if self._bias is not None:
                linear.bias.data = self._bias[start : start + size]
            start += size
        self._x: Tensor | None = None
        self._outputs: Sequence[Tensor] = ()

    def output(self, i: int, x: Tensor) -> Tensor:
        """Of linear ``i``; all are computed when the first is asked for."""
        if self._x is not x:
            self._x = x
            self._outputs = torch.split(
                nn.functional.linear(x, self._weight, self._bias), self._sizes, -1
            )
        return self._outputs[i]

    def forget(self) -> None:
        self._x, self._outputs = None, ()
