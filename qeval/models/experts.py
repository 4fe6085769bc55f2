"""The experts of a mixture as linear layers of their own.

transformers 5 keeps all experts of a layer in two parameters, ``gate_up_proj`` [experts, 2 inner,
hidden] and ``down_proj`` [experts, hidden, inner], and multiplies with slices of them: there is no
module to hook and no weight [out, in] to round. ``experts_as_linears`` opens such modules: every expert
gets ``gate_proj``, ``up_proj`` and ``down_proj``, named as in the models' own checkpoints
(``model.layers.3.mlp.experts.17.gate_proj``), whose weights are views of the parameters. What is
written into them is in the model, at once; parameters and state dict keep their names, and the modules
are gone afterwards.

The layouts are those that transformers' ``use_experts_implementation`` marks its classes with: gate and
up one after the other or interleaved, [in, out] instead of [out, in], with biases, without a gate.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeGuard

import torch
from torch import Tensor, nn

_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.\w+")
_MARKS = ("has_gate", "has_bias", "is_transposed", "is_concatenated", "num_experts")


class Fused(nn.Module):
    """A module with the experts of a layer, as its marks describe it. For types alone: the classes are
    transformers' own."""

    num_experts: int
    has_gate: bool
    has_bias: bool
    is_transposed: bool
    is_concatenated: bool
    gate_up_proj: nn.Parameter
    up_proj: nn.Parameter
    down_proj: nn.Parameter
    act_fn: Callable[[Tensor], Tensor]
    _apply_gate: Callable[[Tensor], Tensor]


def expert_of(name: str) -> tuple[str, int] | None:
    """``model.layers.3.mlp.experts.17.gate_proj`` -> (``model.layers.3.mlp.experts``, 17)."""
    found = _EXPERT.fullmatch(name)
    return (found[1], int(found[2])) if found else None


@contextmanager
def experts_as_linears(model: nn.Module) -> Iterator[None]:
    """Inside, the experts of ``model`` are linear layers, and run as such, each on the tokens that are
    routed to it; an expert without tokens is called with none. Models without experts stay as they are.

    Outputs differ from the parameters' own by the rounding of products of another size at most.
    """
    opened = open_experts(model)
    try:
        yield
    finally:
        for module in opened:
            _close(module)


def open_experts(model: nn.Module) -> list[Fused]:
    """``experts_as_linears`` for as long as the model lives; the modules that were opened (not those
    that were open before)."""
    fused = [m for m in model.modules() if is_fused(m) and not is_open(m)]
    for module in fused:
        _open(module)
    return fused


def is_fused(module: nn.Module) -> TypeGuard[Fused]:
    """Whether it keeps its experts in three-dimensional parameters, in a layout known here."""
    return all(hasattr(module, mark) for mark in _MARKS) and all(
        getattr(getattr(module, name, None), "ndim", 0) == 3 for name in (_first(module), "down_proj")
    )


def is_open(module: nn.Module) -> bool:
    """Whether its experts are linear layers at the moment."""
    return isinstance(module._modules.get("0"), Expert)


class ExpertLinear(nn.Linear):
    """One expert's share of a parameter of all: no parameters of its own."""

    def __init__(self, experts: nn.Module, name: str, index: int, rows: slice) -> None:
        """``name``: the parameter's; ``rows``: which of the outputs [out, in] are this layer's."""
        nn.Module.__init__(self)
        self._experts = (experts,)  # in a tuple: not a child, but what this is a part of
        self._of, self._index, self._rows = name, index, rows
        self.out_features, self.in_features = self.weight.shape

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """[out_features, in_features]; a view, wherever the parameter is by now."""
        whole: Tensor = getattr(self._experts[0], self._of)[self._index]
        return (whole.T if self._experts[0].is_transposed else whole)[self._rows]

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        if not self._experts[0].has_bias:
            return None
        whole: Tensor = getattr(self._experts[0], f"{self._of}_bias")
        return whole[self._index, self._rows]


class Expert(nn.Module):
    """The linear layers of one expert."""

    def __init__(self, experts: Fused, index: int) -> None:
        super().__init__()
        name = _first(experts)
        if experts.has_gate:
            gate, up = _halves(experts)
            self.gate_proj = ExpertLinear(experts, name, index, gate)
            self.up_proj = ExpertLinear(experts, name, index, up)
        else:
            self.up_proj = ExpertLinear(experts, name, index, slice(None))
        self.down_proj = ExpertLinear(experts, "down_proj", index, slice(None))

    def inner(self, experts: Fused, x: Tensor) -> Tensor:
        """[tokens, hidden] -> what ``down_proj`` reads, [tokens, inner]."""
        if not experts.has_gate:
            return experts.act_fn(self.up_proj(x))
        both = self.gate_proj(x), self.up_proj(x)
        joined = torch.cat(both, -1) if experts.is_concatenated else torch.stack(both, -1).flatten(-2)
        return experts._apply_gate(joined)


def _first(experts: nn.Module) -> str:
    return "gate_up_proj" if getattr(experts, "has_gate", True) else "up_proj"


def _halves(experts: Fused) -> tuple[slice, slice]:
    """The outputs of ``gate_up_proj`` that are the gate's, and those that are up's."""
    if not experts.is_concatenated:
        return slice(0, None, 2), slice(1, None, 2)
    half = experts.gate_up_proj.shape[2 if experts.is_transposed else 1] // 2
    return slice(half), slice(half, None)


def _open(experts: Fused) -> None:
    for index in range(experts.num_experts):
        experts.add_module(str(index), Expert(experts, index))
    experts.forward = _Forward(experts)


def _close(experts: Fused) -> None:
    del experts.forward
    for index in range(experts.num_experts):
        del experts._modules[str(index)]


def _expert(experts: Fused, index: int) -> Expert:
    found = experts._modules[str(index)]
    assert isinstance(found, Expert)
    return found


class _Forward:
    """Stands in for the forward of a module of experts."""

    def __init__(self, experts: Fused) -> None:
        self._experts = experts

    def __call__(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """x [tokens, hidden], each token's experts and their weights [tokens, k] -> [tokens, hidden].

        It sums in the order of ``top_k_index``, as transformers' ``grouped_mm`` does (the default, with
        which the engine runs): no sum depends on a device's scheduling. The first layers of all experts
        run before the second ones, so that a pass which is after the inputs of the first can end there.
        """
        experts = self._experts
        n_tokens, k = top_k_index.shape
        chosen = top_k_index.reshape(-1)  # [tokens * k]
        order = chosen.argsort(stable=True)
        counts = torch.bincount(chosen, minlength=experts.num_experts).tolist()
        slots = torch.split(order, counts)
        each = [_expert(experts, i) for i in range(experts.num_experts)]
        inner = [e.inner(experts, hidden_states[s // k]) for e, s in zip(each, slots, strict=True)]
        outs = torch.cat([e.down_proj(x) for e, x in zip(each, inner, strict=True)])
        weighted = outs * top_k_weights.reshape(-1)[order, None]
        in_place = torch.empty_like(weighted).index_copy_(0, order, weighted)
        return in_place.view(n_tokens, k, -1).sum(dim=1).to(hidden_states.dtype)
