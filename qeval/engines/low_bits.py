"""Activations and the KV cache in few bits, as floats that carry the rounding.

Activations: the input of every linear layer but the output head, dynamic, a scale (and a zero point) a
token: asymmetric as in arXiv 2402.18158, or symmetric as in SmoothQuant (arXiv 2211.10438). KV cache:
keys after rotary embedding and values, asymmetric, a scale and a zero point for each group of each head
of each token, rounded once, as they enter the cache; attention, also of a token to itself, reads what
the cache holds. A latent state in their place (DeepSeek's attention) is what the cache stores there.

Arithmetic is in float32, the result in the model's dtype. A cache stores its scales as 16-bit floats,
so they are rounded to float16 first; an activation's scale lives in a register and stays float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from qeval.core.errors import EngineError, UsageError
from qeval.core.execution import kv_group
from qeval.formats.affine import SCALE_BITS
from qeval.models.architectures import blocks_path
from qeval.models.experts import open_experts
from qeval.models.linears import linears_of_any_format, widths

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_CHUNK_ELEMENTS = 2**25  # rounded at once in float32: 128 MiB
_SMALLEST_HALF = 2.0**-24
_FLOAT_SHARE = 0.05  # of the weights that are in no linear layer, from which a note says so


def add_rounding_noise(model: nn.Module, seed: int = 0) -> None:
    """From now on every decoder layer's output is multiplied by 1 + 2^-9 N(0, 1), which is what
    rounding to bfloat16 does to it; each call of the model draws anew.

    Raises:
        EngineError: no list of decoder layers is found in the model.
    """
    path = blocks_path(model)
    if path is None:
        raise EngineError("floor: rounding: no list of decoder layers is known in this architecture")
    draws: dict[torch.device, torch.Generator] = {}

    def noisy(_module: nn.Module, _args: object, output: Tensor | tuple[Tensor, ...]) -> object:
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.device not in draws:
            draws[hidden.device] = torch.Generator(hidden.device).manual_seed(seed)
        noise = torch.randn(hidden.shape, generator=draws[hidden.device], device=hidden.device)
        changed = (hidden.float() * (1 + 2.0**-9 * noise)).to(hidden.dtype)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    for block in model.get_submodule(path).children():
        block.register_forward_hook(noisy)


def fake_quantize(
    x: Tensor, num_bits: int, group_size: int, *, symmetric: bool = False, half_scales: bool = False
) -> Tensor:
    """Round every ``group_size`` consecutive elements of the last dimension to a grid of their own.

    Args:
        x: floats, [..., n]; ``group_size`` divides n.
        symmetric: levels -(2^(b-1) - 1) .. 2^(b-1) - 1, scale = max|x| / (2^(b-1) - 1); else 2^b levels
            over a range with 0 in it.
        half_scales: scales as float16 holds them.

    Returns: floats of x's shape and dtype. A group with NaN or infinity in it becomes NaN.
    """
    groups = x.reshape(-1, group_size)
    step = max(1, _CHUNK_ELEMENTS // group_size)
    grid = _symmetric if symmetric else _asymmetric
    pieces = (groups[i : i + step] for i in range(0, len(groups), step))
    rounded = [grid(piece.float(), num_bits, half_scales).to(x.dtype) for piece in pieces]
    return torch.cat(rounded).view(x.shape)


def _symmetric(groups: Tensor, num_bits: int, half: bool) -> Tensor:
    high = 2 ** (num_bits - 1) - 1
    scale = _scale(groups.abs().amax(-1, keepdim=True) / high, half)
    return (groups / scale).round_().clamp_(-high, high).mul_(scale)


def _asymmetric(groups: Tensor, num_bits: int, half: bool) -> Tensor:
    high = 2**num_bits - 1
    smallest = groups.amin(-1, keepdim=True).clamp_(max=0)
    largest = groups.amax(-1, keepdim=True).clamp_(min=0)
    scale = _scale((largest - smallest) / high, half)
    zero_point = (-smallest / scale).round_().clamp_(0, high)
    levels = (groups / scale).add_(zero_point).round_().clamp_(0, high)
    return levels.sub_(zero_point).mul_(scale)


def _scale(scale: Tensor, half: bool) -> Tensor:
    """Never 0, so that a group of zeros needs no special case."""
    if half:
        return scale.clamp(min=_SMALLEST_HALF).half().float()
    return scale.clamp(min=torch.finfo(torch.float32).tiny)


def round_activations(model: nn.Module, num_bits: int, symmetric: bool) -> str | None:
    """From now on every linear layer but the head reads rounded inputs, those of a mixture's experts,
    too, which are opened for it; a note where much of the model is in no linear layer (experts of an
    unknown layout, convolutions): their inputs stay floats."""
    opened = open_experts(model)
    found = dict(linears_of_any_format(model)).values()
    for module in found:
        module.register_forward_pre_hook(partial(_round_input, num_bits, symmetric))
    inside = {id(p) for module in (*opened, *found) for p in module.parameters()}
    fused = sum(p.numel() for p in model.parameters() if p.dim() > 2 and id(p) not in inside)
    share = fused / (fused + sum(math.prod(widths(module) or ()) for module in found))
    if share < _FLOAT_SHARE:
        return None
    return f"activations: {share:.0%} of the weights are not in linear layers: their inputs stay floats"


def _round_input(num_bits: int, symmetric: bool, module: nn.Module, args: Any) -> object:
    """A hook before a linear layer: [..., in], a grid a token; an expert may get none."""
    x = args[0]
    if not x.numel():
        return None
    return (fake_quantize(x, num_bits, x.shape[-1], symmetric=symmetric), *args[1:])


class RoundedCache(DynamicCache):  # type: ignore[misc]
    """transformers' own cache, full or sliding as the model's configuration says, that rounds keys and
    values [batch, heads, tokens, head_dim] once, as they come in."""

    def __init__(self, config: PretrainedConfig, num_bits: int, group_size: int) -> None:
        super().__init__(config=config)
        self._num_bits, self._group_size = num_bits, group_size

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Raises UsageError where the group size does not divide the head dimension."""
        keys, values = self.rounded(key_states), self.rounded(value_states)
        return super().update(keys, values, layer_idx, *args, **kwargs)  # type: ignore[no-any-return]

    def rounded(self, states: Tensor) -> Tensor:
        """Keys or values [.., head_dim] as the cache holds them."""
        group = kv_group(self._group_size, states.shape[-1])
        return fake_quantize(states, self._num_bits, group, half_scales=True)


@dataclass(frozen=True)
class LowBitCache:
    """What a row's ``kv_cache`` is on one model."""

    num_bits: int
    group_size: int
    bits_per_token: int  # of all layers, scales and zero points included

    @classmethod
    def on(cls, model: PreTrainedModel, num_bits: int, group_size: int) -> LowBitCache:
        """Tries one token.

        Raises:
            EngineError: a group size that does not fit, or a model whose attention keeps its keys and
                values elsewhere.
        """
        kind = model.config.model_type
        cache = RoundedCache(model.config, num_bits, group_size)
        for layer in cache.layers:
            if isinstance(layer, CacheLayerMixin) and type(layer).update not in _PLAIN:
                raise EngineError(
                    f"kv_cache: {kind} keeps more than keys and values ({type(layer).__name__}): "
                    "take kv_cache off this row"
                )
        token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        try:
            with torch.inference_mode():
                model(input_ids=token, past_key_values=cache, use_cache=True)
        except (TypeError, UsageError) as err:  # a model without this argument, or the group size
            raise EngineError(f"{kind}: {err}") from err
        stored = [
            states.shape
            for layer in cache.layers
            if isinstance(layer, CacheLayerMixin) and layer.is_initialized
            for states in (layer.keys, layer.values)
        ]
        if not stored:
            raise EngineError(
                f"kv_cache: the attention of {kind} does not go through transformers' cache: take "
                "kv_cache off this row"
            )
        overhead = SCALE_BITS + num_bits
        bits = sum(
            heads * (dim * num_bits + dim // kv_group(group_size, dim) * overhead)
            for _, heads, _, dim in stored
        )
        return cls(num_bits, group_size, bits)

    def new(self, model: PreTrainedModel) -> RoundedCache:
        return RoundedCache(model.config, self.num_bits, self.group_size)

    def n_bytes(self, context: int) -> int:
        """Stored bytes of one sequence of ``context`` tokens; an upper bound where layers slide a
        window."""
        return -(-self.bits_per_token * context // 8)


_PLAIN = (DynamicLayer.update, DynamicSlidingWindowLayer.update)
