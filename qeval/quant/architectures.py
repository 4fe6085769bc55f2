"""Where the decoder blocks of each model family are, and the stages that their linears run in.

A stage is the linears that read the same input; stages are in the order of the computation, so that
with ``true_sequential`` each is calibrated on what the stages before it, already quantized, hand it. A
dense family is one entry here; everything else (masks, positions, how a block is called) is recorded
from the running model (block_calls.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from qeval.errors import BuildError
from qeval.quant.linears import Linear, linears


@dataclass(frozen=True)
class Architecture:
    blocks: str  # the list of decoder blocks, from the model's root
    stages: tuple[tuple[str, ...], ...]  # linears by their names inside a block


_ATTENTION = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",))
_GATED = Architecture(
    "model.layers", (*_ATTENTION, ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",))
)
_FUSED = (
    ("self_attention.query_key_value",),
    ("self_attention.dense",),
    ("mlp.dense_h_to_4h",),
    ("mlp.dense_4h_to_h",),
)

ARCHITECTURES: dict[str, Architecture] = {  # by config.model_type
    "llama": _GATED,
    "mistral": _GATED,
    "qwen2": _GATED,
    "qwen3": _GATED,
    "gemma": _GATED,
    "starcoder2": Architecture("model.layers", (*_ATTENTION, ("mlp.c_fc",), ("mlp.c_proj",))),
    "opt": Architecture(
        "model.decoder.layers", (_ATTENTION[0], ("self_attn.out_proj",), ("fc1",), ("fc2",))
    ),
    "bloom": Architecture("transformer.h", _FUSED),
    "falcon": Architecture("transformer.h", _FUSED),
    "gpt2": Architecture(
        "transformer.h", (("attn.c_attn",), ("attn.c_proj",), ("mlp.c_fc",), ("mlp.c_proj",))
    ),
}


@dataclass(frozen=True)
class Block:
    """One decoder block of a model, with its linears under the names that they have in the model."""

    module: nn.Module
    stages: tuple[tuple[Linear, ...], ...]


def decoder_blocks(model: Any) -> list[Block]:
    """The decoder blocks of a transformers model, in order.

    Raises:
        BuildError: its ``model_type`` is not in the table, or a block holds other linears than its
            entry says (one that nobody names would stay a float under a quantized row's label).
    """
    kind = str(model.config.model_type)
    if kind not in ARCHITECTURES:
        raise BuildError(
            f"no method of the laboratory knows the architecture {kind} (they know "
            f"{', '.join(sorted(ARCHITECTURES))}): it needs an entry in qeval/quant/architectures.py: "
            "where its decoder blocks are, and the linears of one block in stages"
        )
    entry = ARCHITECTURES[kind]
    every = list(linears(model))
    blocks = []
    for index, module in enumerate(model.get_submodule(entry.blocks)):
        prefix = f"{entry.blocks}.{index}."
        found = {x.name.removeprefix(prefix): x for x in every if x.name.startswith(prefix)}
        _check_names(f"{kind}: {prefix[:-1]}", set(found), entry)
        blocks.append(Block(module, tuple(tuple(found[n] for n in stage) for stage in entry.stages)))
    return blocks


def _check_names(block: str, found: set[str], entry: Architecture) -> None:
    wanted = {name for stage in entry.stages for name in stage}
    more, less = sorted(found - wanted), sorted(wanted - found)
    if more or less:
        raise BuildError(
            f"{block} is not what qeval/quant/architectures.py says:"
            + (f" it has {', '.join(more)}, too" if more else "")
            + (" and" if more and less else "")
            + (f" it lacks {', '.join(less)}" if less else "")
        )
