"""The affine grid: integers with a scale and a zero point per channel or group, and their storage.

Asymmetric: scale = (max - min) / (2^b - 1) over a range with 0 in it, zero_point = round(-min/scale).
Symmetric: scale = 2 max|w| / (2^b - 1), levels -2^(b-1) .. 2^(b-1) - 1: the grid of GPTQ's authors,
GPTQModel and compressed-tensors (max|w| / (2^(b-1) - 1) never uses its lowest level and loses 10 to
20% more). Groups are ``group_size`` consecutive inputs of one row (the convention of GPTQ, AWQ and
compressed-tensors). Scales are stored as 16-bit floats, so they are rounded to float16 before anything
is quantized with them: what is measured is what would be stored.

Shapes: W [out_features, in_features]; scale, zero_point [out_features, n_groups].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qeval.core.errors import BuildError

SCALE_BITS = 16
_SMALLEST_SCALE = float(torch.finfo(torch.float16).tiny)


@dataclass(frozen=True)
class Grid:
    """Where the rows' levels lie: level q of a group stands for (q - zero_point) * scale."""

    scale: Tensor  # [out, n_groups], float32 holding float16 values
    zero_point: Tensor  # [out, n_groups], float32 holding integers; 0 where symmetric
    low: int  # smallest and largest integer level
    high: int


def check_group_size(in_features: Mapping[str, int], group_size: int) -> None:
    """Refuse a group size that does not divide the inputs of every layer (name -> in_features).

    Raises:
        BuildError: naming the first such layer and how many others; a group size is never lowered
            silently, since the row would then carry a false label.
    """
    bad = [name for name, size in in_features.items() if group_size != -1 and size % group_size]
    if not bad:
        return
    fitting = [g for g in (16, 32, 64, 128, 256) if not any(n % g for n in in_features.values())]
    fix = " or ".join(map(str, [*fitting, "-1 (per channel)"]))
    also = f" (and of {len(bad) - 1} more layers)" if len(bad) > 1 else ""
    raise BuildError(
        f"group_size {group_size} does not divide in_features {in_features[bad[0]]} of {bad[0]}{also}: "
        f"use {fix}"
    )


def fit_grid(weight: Tensor, num_bits: int, group_size: int, symmetric: bool) -> Grid:
    """The min/max grid of every group of ``weight`` [out, in] (round-to-nearest's range)."""
    groups = weight.float().reshape(
        len(weight), -1, weight.shape[1] if group_size == -1 else group_size
    )
    if symmetric:
        low, high = -(2 ** (num_bits - 1)), 2 ** (num_bits - 1) - 1
        scale = _storable(2 * groups.abs().amax(-1) / (high - low))
        return Grid(scale, torch.zeros_like(scale), low, high)
    smallest = groups.amin(-1).clamp(max=0)
    largest = groups.amax(-1).clamp(min=0)
    high = 2**num_bits - 1
    scale = _storable((largest - smallest) / high)
    return Grid(scale, (-smallest / scale).round().clamp(0, high), 0, high)


def _storable(scale: Tensor) -> Tensor:
    """Rounded to float16; never 0, so that a group of zeros needs no special case."""
    return scale.clamp(min=_SMALLEST_SCALE).half().float()


def quantize(weight: Tensor, grid: Grid) -> Tensor:
    """Nearest levels: [out, in] float32 holding integers in grid.low .. grid.high."""
    groups = weight.float().reshape(*grid.scale.shape, -1)
    levels = (groups / grid.scale.unsqueeze(-1) + grid.zero_point.unsqueeze(-1)).round()
    return levels.clamp(grid.low, grid.high).flatten(1)


def dequantize(levels: Tensor, grid: Grid) -> Tensor:
    """[out, in] float32 weights of integer levels."""
    groups = levels.reshape(*grid.scale.shape, -1)
    return ((groups - grid.zero_point.unsqueeze(-1)) * grid.scale.unsqueeze(-1)).flatten(1)


def fake_quantize(weight: Tensor, num_bits: int, group_size: int, symmetric: bool) -> Tensor:
    """Round [out, in] to its own min/max grid and return float32."""
    grid = fit_grid(weight, num_bits, group_size, symmetric)
    return dequantize(quantize(weight, grid), grid)


def pack(levels: Tensor, num_bits: int, low: int = 0) -> Tensor:
    """Integers [rows, n] as a bit stream a row, low bits first: uint8 [rows, ceil(n num_bits / 8)]."""
    shifted = (levels - low).to(torch.int64).unsqueeze(-1)
    bits = (shifted >> torch.arange(num_bits)) & 1  # [rows, n, num_bits]
    stream = bits.flatten(1)
    stream = torch.nn.functional.pad(stream, (0, -stream.shape[1] % 8)).reshape(len(levels), -1, 8)
    return (stream << torch.arange(8)).sum(-1).to(torch.uint8)


def unpack(packed: Tensor, num_bits: int, n: int, low: int = 0) -> Tensor:
    """The inverse of ``pack``: int64 [rows, n]."""
    bits = (packed.to(torch.int64).unsqueeze(-1) >> torch.arange(8)) & 1
    fields = bits.flatten(1)[:, : n * num_bits].reshape(len(packed), n, num_bits)
    return (fields << torch.arange(num_bits)).sum(-1) + low


def stored_bytes(shape: tuple[int, int], num_bits: int, group_size: int, symmetric: bool) -> int:
    """Bytes of one packed linear: levels and zero points as bit streams a row, 16-bit scales."""
    rows, columns = shape
    n_groups = 1 if group_size == -1 else columns // group_size
    levels = rows * -(-columns * num_bits // 8)
    zeros = 0 if symmetric else rows * -(-n_groups * num_bits // 8)
    return levels + zeros + rows * n_groups * SCALE_BITS // 8
