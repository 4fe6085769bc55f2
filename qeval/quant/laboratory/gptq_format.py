"""Solved layers in the standard GPTQ layout, and a model folder of them for GPTQModel, transformers and
vLLM.

The layout is in unpack.py. Which of its two conventions for zero points:

- Symmetric grids are ``checkpoint_format: gptq`` (v1, zero points less one), which every loader knows:
  the zero point is 2^(b-1) everywhere.
- Asymmetric ones are ``gptq_v2`` (zero points as they are). A zero point of 0, a group without negative
  weights, has no v1 field: 2^b - 1 stands for 2^b in loaders that add one to each field (vLLM's), and
  carries into the next field in one that adds to whole words (GPTQModel's). GPTQModel 7.6 refuses
  asymmetric v1 files that are not its own. vLLM reads gptq_v2 since October 2025 (its pull request
  26092); before, it takes every zero point to be one more.

The levels are those of the simulated result. Scales are float16 in the file, and kernels round them to
the dtype that they compute in: in float16 the weights are the simulated ones, in bfloat16 scales are up
to 2^-9 off.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qeval.core.artifact import Artifact, LayerReport
from qeval.core.errors import BuildError
from qeval.formats.affine import Grid
from qeval.formats.describe import describe_packed
from qeval.models.architectures import decoder_blocks
from qeval.models.side_files import copy_side_files
from qeval.quant.base import BuildContext

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Parts = dict[str, Tensor]  # qweight, qzeros, scales, g_idx


def pack_gptq(weight: Tensor, grid: Grid, group_of: Tensor) -> Parts:
    """The parts of a layer, on the CPU: qweight int32 [in * bits / 32, out], qzeros int32
    [groups, out * bits / 32], scales float16 [groups, out], g_idx int32 [in].

    Args:
        weight: [out, in] float32 on ``grid``, both widths multiples of 32.
        grid: with whole zero points.
        group_of: [in] the group of each input in ``grid``.
    """
    num_bits = (grid.high - grid.low).bit_length()
    # Exact, as the float32 weights are levels times scales; in bfloat16 neighbours of 8 bits are one.
    levels = (weight / grid.scale[:, group_of] + grid.zero_point[:, group_of]).round()
    zeros = grid.zero_point - grid.low - (1 if grid.low < 0 else 0)  # [out, groups]
    parts = {
        "qweight": pack_ints((levels - grid.low).to(torch.uint8).T, num_bits),
        "qzeros": pack_ints(zeros.to(torch.uint8), num_bits).T.contiguous(),
        "scales": grid.scale.T.half().contiguous(),
        "g_idx": group_of.int(),
    }
    return {name: part.cpu() for name, part in parts.items()}


def pack_ints(values: Tensor, num_bits: int) -> Tensor:
    """uint8 [n, m] -> int32 [n * num_bits / 32, m], n a multiple of 32: 32 values in num_bits words,
    lowest bits first; the inverse of unpack.unpack_ints."""
    rows, columns = values.shape
    fields = values.reshape(rows // 32, 32, columns)
    words = torch.zeros(rows // 32, num_bits, columns, dtype=torch.int32, device=values.device)
    for i in range(32):
        field = fields[:, i].int()
        word, shift = divmod(i * num_bits, 32)
        words[:, word] |= field << shift
        if shift + num_bits > 32:  # 3 bits: two of the values lie across words
            words[:, word + 1] |= field >> (32 - shift)
    return words.flatten(0, 1)


def check_in_blocks(model: PreTrainedModel, names: Iterable[str]) -> None:
    """Raises BuildError where a linear is not in a decoder block: this format's loaders take all others
    to be floats."""
    inside = {x.name for block in decoder_blocks(model) for x in block.linears}
    outside = [name for name in names if name not in inside]
    if outside:
        raise BuildError(
            f"format: gptq packs decoder blocks only, and {outside[0]} is in none: leave format out"
        )


def save_gptq(
    model: PreTrainedModel,
    context: BuildContext,
    config: dict[str, object],
    packed: Mapping[str, Parts],
    layers: Iterable[LayerReport],
    notes: tuple[str, ...] = (),
) -> Artifact:
    """Write the folder ``context.out/model``: the linears ``packed`` by name, all else as it is in
    ``model``.

    Args:
        config: quantization_config of config.json.
        layers: what is known of the linears beside their sizes, which are those of the files.
    """
    folder = context.out / "model"
    state = model.state_dict()
    for name, parts in packed.items():
        del state[f"{name}.weight"]
        state |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    model.config.quantization_config = config
    model.save_pretrained(folder, state_dict=state, max_shard_size="4GB")
    copy_side_files(context.model.path, folder)
    artifact = describe_packed(folder)
    known = {x.name: x for x in layers}
    stored = {x.name: x.stored_bytes for x in artifact.layers}
    reports = tuple(replace(known[name], stored_bytes=size) for name, size in stored.items())
    return replace(artifact, layers=reports, notes=(*notes, *artifact.notes))
