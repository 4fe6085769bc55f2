"""Where the decoder blocks of each model family are, and the stages that their linears run in.

A stage is the linears that read the same input; stages are in the order of the computation, so that
with ``true_sequential`` each is calibrated on what the stages before it, already quantized, hand it. A
family is one entry here; everything else (masks, positions, how a block is called) is recorded from the
running model (block_calls.py).

A ``*`` stands for every expert of a mixture (experts.py). All experts are one stage, and each reads the
tokens that are routed to it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Any

from torch import nn

from qeval.errors import BuildError
from qeval.quant.experts import is_open
from qeval.quant.linears import Linear, linears

Names = tuple[str, ...]


@dataclass(frozen=True)
class Architecture:
    blocks: str  # the list of decoder blocks, from the model's root
    stages: tuple[Names, ...]  # linears by their names inside a block
    left: Names = ()  # linears that stay floats: routers
    blocks_differ: bool = False  # a block need not have all of them: a mixture's dense first blocks


def _mlp(path: str = "mlp") -> tuple[Names, ...]:
    return (f"{path}.gate_proj", f"{path}.up_proj"), (f"{path}.down_proj",)


_ATTENTION = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",))
_GATED = Architecture("model.layers", (*_ATTENTION, *_mlp()))
_FUSED = (
    ("self_attention.query_key_value",),
    ("self_attention.dense",),
    ("mlp.dense_h_to_4h",),
    ("mlp.dense_4h_to_h",),
)
_MIXTURE = Architecture("model.layers", (*_ATTENTION, *_mlp("mlp.experts.*")))
_LATENT = (  # multi-head latent attention; the large models' queries have a latent form, too
    ("self_attn.q_proj", "self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"),
    ("self_attn.q_b_proj",),
    ("self_attn.kv_b_proj",),
    ("self_attn.o_proj",),
)
_DEEPSEEK = Architecture(
    "model.layers",
    (*_LATENT, *_mlp(), *_mlp("mlp.experts.*"), *_mlp("mlp.shared_experts")),
    blocks_differ=True,
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
    "mixtral": _MIXTURE,
    "olmoe": _MIXTURE,
    "qwen2_moe": Architecture(
        "model.layers",
        (*_ATTENTION, *_mlp(), *_mlp("mlp.shared_expert"), *_mlp("mlp.experts.*")),
        left=("mlp.shared_expert_gate",),
        blocks_differ=True,
    ),
    "qwen3_moe": Architecture(
        "model.layers", (*_ATTENTION, *_mlp(), *_mlp("mlp.experts.*")), blocks_differ=True
    ),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
}

Group = tuple[Linear, ...]
"""Linears that read the same tokens of the same input."""


@dataclass(frozen=True)
class Block:
    """One decoder block of a model, with its linears under the names that they have in the model."""

    module: nn.Module
    stages: tuple[tuple[Group, ...], ...]  # of one group each, or of as many as there are experts

    @property
    def linears(self) -> list[Linear]:
        return [linear for stage in self.stages for group in stage for linear in group]


def decoder_blocks(model: Any) -> list[Block]:
    """The decoder blocks of a transformers model, in order; its experts must be open (experts.py).

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
        stages = [_groups(stage, found, entry) for stage in entry.stages]
        _check_names(f"{kind}: {prefix[:-1]}", {*found, *_stacks(module)}, stages, entry)
        linear = ((tuple(found[n] for n in group) for group in stage) for stage in stages if stage)
        blocks.append(Block(module, tuple(tuple(stage) for stage in linear)))
    return blocks


def _groups(stage: Names, found: Collection[str], entry: Architecture) -> tuple[Names, ...]:
    """Of a stage, what a block has: the names of one group, or of one for each expert."""
    if "*" not in stage[0]:
        names = tuple(n for n in stage if n in found) if entry.blocks_differ else stage
        return (names,) if names else ()
    experts = takewhile(lambda names: names[0] in found, (_of_expert(stage, i) for i in count()))
    return tuple(experts) or (() if entry.blocks_differ else (stage,))


def _of_expert(stage: Names, index: int) -> Names:
    return tuple(name.replace("*", str(index)) for name in stage)


def _stacks(block: nn.Module) -> Iterator[str]:
    """Weights of more than two dimensions, but for those of experts that are open."""
    for path, module in block.named_modules():
        if not is_open(module):
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.ndim > 2:
                    yield f"{path}.{name}"


def _check_names(
    block: str, found: set[str], stages: Sequence[tuple[Names, ...]], entry: Architecture
) -> None:
    wanted = {name for stage in stages for names in stage for name in names}
    more, less = sorted(found - wanted - set(entry.left)), sorted(wanted - found)
    if more or less:
        raise BuildError(
            f"{block} is not what qeval/quant/architectures.py says:"
            + (f" it has {', '.join(more)}, too" if more else "")
            + (" and" if more and less else "")
            + (f" it lacks {', '.join(less)}" if less else "")
        )
