"""The cache of keys and values that sequences are decoded in: laid out once, a slot for each sequence.

For every layer one tensor [slots, heads, capacity, head_dim] of keys and one of values. Slot i holds
the sequence of row i of the batch, its token at position p in column p. So a decode step of the first
B slots reads views of these tensors and copies nothing, and a step captured as a CUDA graph reads the
same addresses for ever. A prompt is computed once, in transformers' own cache, and copied into the slot
of each of its samples (``Prefix``).

Sliding layers keep all positions; attention looks at those in the window (attention.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

_PLAIN = (DynamicLayer.update, DynamicSlidingWindowLayer.update)
Shape = tuple[int, int, torch.dtype]  # heads, head_dim


@cache
def has_triton() -> bool:
    return find_spec("triton") is not None


class NoSlots(Exception):
    """A model whose sequences this cache cannot hold, or whose attention attention.py cannot do."""


class Step:
    """What one decode step knows of its rows, each of which feeds one token.

    Args:
        positions: of those tokens, [rows].
        columns: of the cache that are looked at: more than any position.
    """

    def __init__(self, positions: Tensor, columns: int) -> None:
        self.positions, self.columns = positions, columns
        self._seen: dict[int | None, Tensor] = {}

    def seen(self, window: int | None) -> Tensor:
        """Which columns each row looks at, [rows, columns]: its own and those before it, of the last
        ``window``."""
        if window not in self._seen:
            column = torch.arange(self.columns, device=self.positions.device)
            last = self.positions[:, None]
            seen = column <= last
            self._seen[window] = seen & (column > last - window) if window else seen
        return self._seen[window]


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values, [slots, heads, capacity, head_dim]."""

    is_compileable = True
    is_sliding = False

    def __init__(self, cache: SlotCache, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self._cache, self.keys, self.values = cache, keys, values
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Args: the step's keys and values, [rows, heads, 1, head_dim]. Returns views of the whole
        cache, [rows, heads, columns, head_dim]."""
        step, rounded = self._cache.step, self._cache.rounded
        assert step is not None
        rows = len(step.positions)
        if rounded:
            key_states, value_states = rounded(key_states), rounded(value_states)
        if key_states.is_cuda and has_triton():
            from qeval.engines.generation.kernels import write

            write(self.keys, key_states, self.values, value_states, step.positions)
        else:
            for kept, new in ((self.keys, key_states), (self.values, value_states)):
                column = step.positions[:, None, None, None].expand(-1, *new.shape[1:])
                kept[:rows].scatter_(2, column, new)
        return self.keys[:rows, :, : step.columns], self.values[:rows, :, : step.columns]

    def get_seq_length(self) -> int:
        assert self._cache.step is not None
        return self._cache.step.columns - 1  # as if every row's token were the last: a mask says more

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1


class SlotCache(Cache):  # type: ignore[misc]
    """``rounded``: what happens to keys and values as they come in (a row's ``kv_cache``)."""

    def __init__(
        self,
        like: Prefix,
        n_slots: int,
        capacity: int,
        device: torch.device,
        rounded: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.step: Step | None = None
        self.rounded = rounded
        self.capacity, self.n_slots = capacity, n_slots
        self._stores = [
            tuple(
                torch.zeros(len(group), n_slots, heads, capacity, dim, dtype=dtype, device=device)
                for heads, dim, dtype in kind
            )
            for kind, group in like.groups.items()
        ]
        layers: dict[int, _Layer] = {}
        for (keys, values), group in zip(self._stores, like.groups.values(), strict=True):
            for row, layer in enumerate(group):
                layers[layer] = _Layer(self, keys[row], values[row])
        super().__init__(layers=[layers[i] for i in range(len(layers))])

    def hold(self, slot: int, prefix: Prefix) -> None:
        """Copy a prompt into a slot."""
        for stores, states in zip(self._stores, prefix.states, strict=True):
            for store, state in zip(stores, states, strict=True):
                store[:, slot, :, : prefix.n_tokens].copy_(state)

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first ``tokens`` columns of a slot into another."""
        for stores in self._stores:
            for store in stores:
                store[:, target, :, :tokens].copy_(store[:, source, :, :tokens])


class Prefix:
    """A prompt's keys and values, out of transformers' cache after a forward of one sequence.

    Layers of one shape lie in one tensor, so that a copy is few operations: ``groups`` has the numbers
    of such layers by their shape, ``states`` for each group the keys and the values, [layers, heads,
    tokens, head_dim]; zeros where a sliding layer has forgotten.

    Raises:
        NoSlots: a layer that keeps something else.
    """

    def __init__(self, cache: Any) -> None:
        self.groups: dict[tuple[Shape, Shape], list[int]] = {}
        layers = list(getattr(cache, "layers", []))
        if not layers:
            raise NoSlots("its cache is not transformers' own")
        for number, layer in enumerate(layers):
            if getattr(type(layer), "update", None) not in _PLAIN:
                raise NoSlots(f"it keeps more than keys and values ({type(layer).__name__})")
            if not layer.is_initialized or len(layer.keys) != 1:
                raise NoSlots("not every layer keeps keys and values of its own")
            kind = (_shape(layer.keys), _shape(layer.values))
            self.groups.setdefault(kind, []).append(number)
        self.n_tokens = int(layers[0].get_seq_length())
        self.states = [
            (
                _stacked([layers[i].keys for i in group], self.n_tokens),
                _stacked([layers[i].values for i in group], self.n_tokens),
            )
            for group in self.groups.values()
        ]

    @property
    def token_bytes(self) -> int:
        """Of one token in all layers of a SlotCache."""
        return sum(
            len(group) * heads * dim * dtype.itemsize
            for kind, group in self.groups.items()
            for heads, dim, dtype in kind
        )


def _shape(states: Tensor) -> Shape:
    return states.shape[1], states.shape[3], states.dtype


def _stacked(states: list[Tensor], tokens: int) -> Tensor:
    """[layers, heads, tokens, head_dim]."""
    return torch.cat([pad(state, (0, 0, tokens - state.shape[-2], 0)) for state in states])
