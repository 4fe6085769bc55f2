"""Attention of a decode step: each row's one query, over the first ``lengths`` columns of its slot.

It stands in transformers' table of attention functions under a name of its own, and is switched on for
decode steps alone: prompts run with the attention that the model was loaded with. A family that asks
that table is given no mask; others (BLOOM, Falcon) build theirs from ``attention_mask``.

The queries that share a head of keys are laid beside each other, [rows, key heads, group, head_dim], so
that keys and values are read once for all of them and never repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from qeval.engines.generation.cache import NoSlots, Step, has_triton

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

NAME = "qeval_slots"
_step: Step | None = None
# What a model may hand to its attention that changes nothing here.
_IDLE = {"position_ids", "cache_position", "position_embeddings", "use_cache", "is_causal", "dropout"}


def configs_of(model: PreTrainedModel) -> list[PretrainedConfig]:
    """Where the model's parts read which attention function to call; none where its family does not
    ask transformers' table."""
    if not getattr(model, "_supports_attention_backend", False):
        return []
    return list({id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values())


@contextmanager
def decoding(configs: Sequence[PretrainedConfig], step: Step) -> Iterator[None]:
    """While it is open, the model of these ``configs_of`` attends as this step says."""
    global _step
    usual = [config._attn_implementation_internal for config in configs]
    _step = step
    try:
        for config in configs:
            config._attn_implementation_internal = NAME
        yield
    finally:
        _step = None
        for config, name in zip(configs, usual, strict=True):
            config._attn_implementation_internal = name


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """transformers' attention function. query [rows, heads, 1, d], key [rows, key heads, columns, d],
    value [.., d_v] -> [rows, 1, heads, d_v].

    Raises:
        NoSlots: it is asked for something that this does not do.
    """
    step = _step
    assert step is not None
    wrong = [
        name
        for name, what in others.items()
        if what is not None and name not in _IDLE and not name.startswith("output_")
    ]
    if wrong or query.shape[2] != 1 or key.shape[2] != step.columns:
        raise NoSlots(f"its attention takes {', '.join(wrong) or 'other keys than those in the cache'}")
    _check_window(module, sliding_window)
    rows, heads, _, dim = query.shape
    grouped = query.reshape(rows, key.shape[1], heads // key.shape[1], dim)
    scale = dim**-0.5 if scaling is None else scaling
    if query.is_cuda and has_triton():
        from qeval.engines.generation.kernels import attention

        out = attention(
            grouped, key, value, step.positions, scale, sliding_window or 0, softcap or 0.0, s_aux
        )
    else:
        seen = step.seen(sliding_window)[:, None, None]
        out = _attention(grouped, key, value, seen, scale, softcap, s_aux)
    return out.reshape(rows, 1, heads, value.shape[-1]), None


def _check_window(module: nn.Module, sliding_window: int | None) -> None:
    """A layer that slides must say so in the call: here no mask says it."""
    config, layer = getattr(module, "config", None), getattr(module, "layer_idx", None)
    kinds = getattr(config, "layer_types", None)
    if kinds and isinstance(layer, int) and layer < len(kinds):
        kind = kinds[layer]
    else:
        slides = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
        kind = "sliding_attention" if slides else "full_attention"
    if kind not in ("full_attention", "sliding_attention"):
        raise NoSlots(f"its attention is of a kind that is not known here: {kind}")
    if kind == "sliding_attention" and not sliding_window:
        raise NoSlots("its sliding window is in a mask only")


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Tensor,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """query [rows, key heads, group, d], seen [rows, 1, 1, columns] -> as query, with d_v."""
    if softcap is None and sinks is None:
        return nn.functional.scaled_dot_product_attention(query, key, value, seen, scale=scale)
    scores = (query.float() @ key.float().transpose(-1, -2)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        sink = sinks.float().view(1, *query.shape[1:3], 1).expand(len(query), -1, -1, 1)
        scores = torch.cat([scores, sink], -1)
    shares = scores.softmax(-1)[..., : key.shape[2]]
    return (shares @ value.float()).to(value.dtype)


AttentionInterface.register(NAME, attend)
