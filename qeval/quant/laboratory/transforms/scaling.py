"""A scale for each channel between an operation and the linears that read it (architectures.py: Feed).

    y = W x,  x = f(...)   ->   y = (W diag(s)) (x / s),  with the division inside f
f is a norm (its weight and bias divided; Gemma's weight is kept less 1) or a linear (its rows and its
bias divided). In exact arithmetic nothing changes; in the model's dtype each weight is rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qeval.models.architectures import Feed


def fold(feed: Feed, scale: Tensor) -> None:
    """Divide the outputs of ``feed.source`` by ``scale`` [channels], float32 and positive, and multiply
    the inputs of its readers, both in place."""
    weight = feed.source.weight
    assert isinstance(weight, Tensor)
    divisor = scale if weight.ndim == 1 else scale[:, None]
    weight.data.copy_((weight.data.float() + feed.offset) / divisor - feed.offset)
    bias = getattr(feed.source, "bias", None)
    if bias is not None:
        bias.data.copy_(bias.data.float() / scale)
    for reader in feed.readers:
        reader.weight.copy_(reader.weight.float() * scale)


def column_maxima(feed: Feed) -> Tensor:
    """max |w_j| of each input over all linears that read it, [channels] float32."""
    each = [reader.weight.float().abs().amax(dim=0) for reader in feed.readers]
    return torch.stack(each).amax(dim=0)
