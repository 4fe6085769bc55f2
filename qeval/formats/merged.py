"""Packed linears that read the same input, as one product: q, k and v; gate and up.

A kernel for few bits takes tens of microseconds at least, however small the linear: the keys' and
values' linears of a model with few heads of them cost as much as the queries'. The columns of packed
weights do not depend on each other, so that linears lie beside each other in one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qeval.models.architectures import ARCHITECTURES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BESIDE = ("qweight", "qzeros", "scales", "bias")  # their last axis are the outputs
_SAME = "g_idx"  # the group of each input
_SCHEME = ("bits", "group_size", "desc_act", "sym", "in_features", "pack_dtype")


def merge(model: PreTrainedModel) -> int:
    """Put one product in the place of the linears of each stage of the family (ARCHITECTURES), where
    they are packed alike. The linears are GPTQModel's, and hold their tensors as the files do: its
    kernels have not laid them out yet. Returns how many products were made."""
    entry = ARCHITECTURES.get(str(model.config.model_type))
    if entry is None:
        return 0
    made = 0
    for block in model.get_submodule(entry.blocks):
        found = dict(block.named_modules())
        for stage in entry.stages:
            linears = [found[name] for name in stage if name in found]
            if len(linears) < max(2, len(stage)) or not _are_alike(linears):
                continue
            product = _Product(linears)
            for i, name in enumerate(stage):
                block.set_submodule(name, _Part(product, i))
            made += 1
    return made


def _are_alike(linears: Sequence[nn.Module]) -> bool:
    first = linears[0]
    tensors = _tensors(first)
    if not {"qweight", "scales"} <= tensors.keys() <= {*_BESIDE, _SAME}:
        return False
    for linear in linears[1:]:
        others = _tensors(linear)
        if type(linear) is not type(first) or others.keys() != tensors.keys():
            return False
        if any(getattr(linear, key, None) != getattr(first, key, None) for key in _SCHEME):
            return False
        if any(others[key].dtype != tensors[key].dtype for key in tensors):
            return False
        if _SAME in tensors and not torch.equal(others[_SAME], tensors[_SAME]):
            return False
    return True


def _tensors(linear: nn.Module) -> dict[str, Tensor]:
    """Those that are not empty."""
    held = {**linear._parameters, **linear._buffers}
    return {name: tensor for name, tensor in held.items() if tensor is not None and tensor.numel()}


class _Product(nn.Module):
    """All of ``linears``, [.., inputs] -> [.., sum of their outputs]."""

    def __init__(self, linears: Sequence[nn.Module]) -> None:
        super().__init__()
        like: Any = linears[0]
        self._sizes: list[int] = [int(getattr(linear, "out_features")) for linear in linears]  # noqa: B009
        tensors = [_tensors(linear) for linear in linears]
        self.linear: Any = type(like)(
            **{key: getattr(like, key) for key in _SCHEME},
            out_features=sum(self._sizes),
            bias="bias" in tensors[0],
            register_buffers=True,
        )
        for name, own in tensors[0].items():
            whole = own if name == _SAME else torch.cat([each[name] for each in tensors], -1)
            if name in like._parameters:
                self.linear._parameters[name] = nn.Parameter(whole, requires_grad=False)
            else:
                self.linear._buffers[name] = whole.contiguous()
        self.linear.to(own.device).eval()
        self._x: Tensor | None = None
        self._outputs: Sequence[Tensor] = ()

    def part(self, i: int, x: Tensor) -> Tensor:
        """The outputs of linear ``i``; those of all are computed when the first is asked for."""
        if self._x is not x:
            self._x, self._outputs = x, torch.split(self.linear(x), self._sizes, -1)
        found = self._outputs[i]
        if i == len(self._sizes) - 1:
            self._x, self._outputs = None, ()
        return found


class _Part(nn.Module):
    def __init__(self, product: _Product, i: int) -> None:
        super().__init__()
        self.product, self._i = product, i

    def forward(self, x: Tensor) -> Tensor:
        return self.product.part(self._i, x)
