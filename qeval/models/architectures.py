"""Where the decoder blocks of each model family are, and the stages that their linears run in.

A stage is the linears that read the same input; stages are in the order of the computation, so that
with ``true_sequential`` each is calibrated on what the stages before it, already quantized, hand it. A
family is one entry here; everything else (masks, positions, how a block is called) is recorded from the
running model (block_calls.py).

A ``*`` stands for every expert of a mixture (experts.py). All experts are one stage, and each reads the
tokens that are routed to it.

For AWQ and SmoothQuant an entry also says where a stage's inputs come from (Source), if a scale for
each input can go into that operation and leave what the block computes as it is: a norm, v for o, up
for down, fc1 for fc2 through a ReLU. No other activation function lets a scale through, the values in a
fused projection are left alone, and so is a norm that feeds a router, too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, takewhile
from typing import TYPE_CHECKING

from torch import Tensor, nn

from qeval.core.errors import BuildError
from qeval.models.experts import is_open
from qeval.models.linears import Linear, linears

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Names = tuple[str, ...]
ROUTED = "the norm before feeds the router, too"
_UNFED = "what lies before is an activation function or fused"


@dataclass(frozen=True)
class Source:
    """The operation whose outputs are a stage's inputs, and go nowhere but to stages that name it."""

    names: Names  # inside a block; the first that it has
    when: tuple[str, object] | None = None  # only where the model's config has this value
    offset: float = 0.0  # Gemma's norms multiply by 1 + weight


@dataclass(frozen=True)
class Architecture:
    blocks: str  # the list of decoder blocks, from the model's root
    stages: tuple[Names, ...]  # linears by their names inside a block
    blocks_differ: bool = False  # a block need not have all of them: a mixture's dense first blocks
    sources: Mapping[str, Source | str] = field(default_factory=dict)  # or why none; by a stage's first
    queries_and_keys: Names = ("self_attn.q_proj", "self_attn.k_proj")  # or what holds them


def _mlp(path: str = "mlp") -> tuple[Names, ...]:
    return (f"{path}.gate_proj", f"{path}.up_proj"), (f"{path}.down_proj",)


def _mlp_sources(path: str = "mlp", norm: Source | str = ROUTED) -> dict[str, Source | str]:
    return {f"{path}.gate_proj": norm, f"{path}.down_proj": Source((f"{path}.up_proj",))}


def _attention_sources(
    offset: float = 0.0, when: tuple[str, object] | None = None
) -> dict[str, Source | str]:
    return {
        "self_attn.q_proj": Source(("input_layernorm",), offset=offset),
        "self_attn.o_proj": Source(("self_attn.v_proj",), when),
    }


_ATTENTION = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",))
_SECOND_NORM = Source(("post_attention_layernorm",))


def _gated(offset: float = 0.0) -> Architecture:
    """Llama and its like; ``offset`` is that of the norms."""
    norm = Source(("post_attention_layernorm",), offset=offset)
    sources = _attention_sources(offset) | _mlp_sources(norm=norm)
    return Architecture("model.layers", (*_ATTENTION, *_mlp()), sources=sources)


def _mixture(when_values: tuple[str, object] | None = None) -> Architecture:
    sources = _attention_sources(when=when_values) | _mlp_sources("mlp.experts.*")
    return Architecture("model.layers", (*_ATTENTION, *_mlp("mlp.experts.*")), sources=sources)


_FUSED = (
    ("self_attention.query_key_value",),
    ("self_attention.dense",),
    ("mlp.dense_h_to_4h",),
    ("mlp.dense_4h_to_h",),
)
_FUSED_QUERIES = ("self_attention.query_key_value",)
_OPT_BEFORE = ("do_layer_norm_before", True)  # else the norms' outputs are the residuals, too
_BLOOM_BEFORE = ("apply_residual_connection_post_layernorm", False)
_DENSE_OR_EXPERTS = _mlp_sources(norm=_SECOND_NORM) | _mlp_sources("mlp.experts.*")
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
    sources={
        "self_attn.q_proj": Source(("input_layernorm",)),
        "self_attn.q_b_proj": Source(("self_attn.q_a_layernorm",)),
        "self_attn.kv_b_proj": Source(("self_attn.kv_a_layernorm",)),
        **_DENSE_OR_EXPERTS,
        **_mlp_sources("mlp.shared_experts"),
    },
    queries_and_keys=("self_attn.q_proj", "self_attn.q_b_proj", "self_attn.kv_b_proj"),
)

ARCHITECTURES: dict[str, Architecture] = {  # by config.model_type
    "llama": _gated(),
    "mistral": _gated(),
    "qwen2": _gated(),
    "qwen3": _gated(),
    "gemma": _gated(offset=1.0),
    "starcoder2": Architecture(
        "model.layers",
        (*_ATTENTION, ("mlp.c_fc",), ("mlp.c_proj",)),
        sources=_attention_sources() | {"mlp.c_fc": _SECOND_NORM},
    ),
    "opt": Architecture(
        "model.decoder.layers",
        (_ATTENTION[0], ("self_attn.out_proj",), ("fc1",), ("fc2",)),
        sources={
            "self_attn.q_proj": Source(("self_attn_layer_norm",), when=_OPT_BEFORE),
            "self_attn.out_proj": Source(("self_attn.v_proj",)),
            "fc1": Source(("final_layer_norm",), when=_OPT_BEFORE),
            "fc2": Source(("fc1",), when=("activation_function", "relu")),
        },
    ),
    "bloom": Architecture(
        "transformer.h",
        _FUSED,
        sources={
            "self_attention.query_key_value": Source(("input_layernorm",), when=_BLOOM_BEFORE),
            "mlp.dense_h_to_4h": Source(("post_attention_layernorm",), when=_BLOOM_BEFORE),
        },
        queries_and_keys=_FUSED_QUERIES,
    ),
    "falcon": Architecture(
        "transformer.h",
        _FUSED,
        sources={  # one norm for both, one each side by side, or one each in turn
            "self_attention.query_key_value": Source(("ln_attn", "input_layernorm")),
            "mlp.dense_h_to_4h": Source(("ln_mlp", "post_attention_layernorm", "input_layernorm")),
        },
        queries_and_keys=_FUSED_QUERIES,
    ),
    "gpt2": Architecture(
        "transformer.h",
        (("attn.c_attn",), ("attn.c_proj",), ("mlp.c_fc",), ("mlp.c_proj",)),
        sources={"attn.c_attn": Source(("ln_1",)), "mlp.c_fc": Source(("ln_2",))},
        queries_and_keys=("attn.c_attn",),
    ),
    "mixtral": _mixture(),
    "olmoe": _mixture(when_values=("clip_qkv", None)),
    "qwen2_moe": Architecture(
        "model.layers",
        (*_ATTENTION, *_mlp(), *_mlp("mlp.shared_expert"), *_mlp("mlp.experts.*")),
        blocks_differ=True,
        sources=_attention_sources() | _DENSE_OR_EXPERTS | _mlp_sources("mlp.shared_expert"),
    ),
    "qwen3_moe": Architecture(
        "model.layers",
        (*_ATTENTION, *_mlp(), *_mlp("mlp.experts.*")),
        blocks_differ=True,
        sources=_attention_sources() | _DENSE_OR_EXPERTS,
    ),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
}

Group = tuple[Linear, ...]
"""Linears that read the same tokens of the same input."""


@dataclass(frozen=True)
class Feed:
    """An operation and every linear that reads its outputs. Divide its output channels by s and
    multiply the linears' inputs by s, and the block computes what it did."""

    source: nn.Module  # a norm or a linear
    readers: tuple[Linear, ...]
    offset: float = 0.0  # a norm that multiplies by offset + weight

    @property
    def is_norm(self) -> bool:
        return not isinstance(self.source, nn.Linear)


@dataclass(frozen=True)
class Block:
    """One decoder block of a model, with its linears under the names that they have in the model."""

    module: nn.Module
    stages: tuple[tuple[Group, ...], ...]  # of one group each, or of as many as there are experts
    feeds: tuple[Feed, ...] = ()
    unfed: Mapping[str, str] = field(default_factory=dict)  # the other linears: why nothing feeds them
    queries_and_keys: frozenset[str] = frozenset()  # linears whose outputs meet in attention's product

    @property
    def linears(self) -> list[Linear]:
        return [linear for stage in self.stages for group in stage for linear in group]


def decoder_blocks(model: PreTrainedModel) -> list[Block]:
    """The decoder blocks of a transformers model, in order; its experts must be open (experts.py).

    Raises:
        BuildError: its ``model_type`` is not in the table, or a block holds other linears than its
            entry says (one that is not named would stay a float under a quantized row's label).
    """
    kind = str(model.config.model_type)
    if kind not in ARCHITECTURES:
        raise BuildError(
            f"no method of the laboratory knows the architecture {kind} (they know "
            f"{', '.join(sorted(ARCHITECTURES))}): it needs an entry in qeval/models/architectures.py: "
            "where its decoder blocks are, and the linears of one block in stages"
        )
    entry = ARCHITECTURES[kind]
    every = list(linears(model))
    blocks = []
    for index, module in enumerate(model.get_submodule(entry.blocks)):
        prefix = f"{entry.blocks}.{index}."
        found = {x.name.removeprefix(prefix): x for x in every if x.name.startswith(prefix)}
        stages = [_groups(stage, found, entry) for stage in entry.stages]
        _check_names(f"{kind}: {prefix[:-1]}", {*found, *_stacks(module)}, stages)
        linear = [tuple(tuple(found[n] for n in group) for group in stage) for stage in stages]
        feeds, unfed = _feeds(module, linear, entry, model.config)
        asking = frozenset(found[n].name for n in entry.queries_and_keys if n in found)
        blocks.append(Block(module, tuple(stage for stage in linear if stage), feeds, unfed, asking))
    return blocks


def _feeds(
    block: nn.Module, stages: Sequence[Sequence[Group]], entry: Architecture, config: PretrainedConfig
) -> tuple[tuple[Feed, ...], dict[str, str]]:
    """What feeds the linears, groups that read the same norm in one; and why nothing feeds the rest.
    ``stages`` are the entry's, of which a block need not have all."""
    feeds: dict[str, Feed] = {}
    unfed: dict[str, str] = {}
    modules = dict(block.named_modules())
    for pattern, groups in zip(entry.stages, stages, strict=True):
        source = entry.sources.get(pattern[0], _UNFED)
        for index, group in enumerate(groups):
            why_not = source if isinstance(source, str) else ""
            if isinstance(source, Source):
                names = _of_expert(source.names, index)
                name = next((n for n in names if n in modules), names[-1])
                why_not = _why_not(name, modules.get(name), source.when, group, config)
            if isinstance(source, str) or why_not:
                unfed.update((linear.name, why_not) for linear in group)
            else:
                before = feeds[name].readers if name in feeds else ()
                feeds[name] = Feed(modules[name], (*before, *group), source.offset)
    return tuple(feeds.values()), unfed


def _why_not(
    name: str,
    module: nn.Module | None,
    when: tuple[str, object] | None,
    group: Group,
    config: PretrainedConfig,
) -> str:
    """Why no scale can go into a block's module ``name``; empty: it can."""
    if when is not None and getattr(config, when[0]) != when[1]:
        return f"the model has {when[0]}: {getattr(config, when[0])}"
    if module is None:
        return f"the block has no {name}"
    if not isinstance(module.weight, Tensor):
        return f"{name} has no weights"
    outputs, inputs = len(module.weight), group[0].weight.shape[1]
    return "" if outputs == inputs else f"{name} has {outputs} outputs for {inputs} inputs"


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
    """Weights of more than two dimensions, except those of experts that are open."""
    for path, module in block.named_modules():
        if not is_open(module):
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.ndim > 2:
                    yield f"{path}.{name}"


def _check_names(block: str, found: set[str], stages: Sequence[tuple[Names, ...]]) -> None:
    wanted = {name for stage in stages for names in stage for name in names}
    more, less = sorted(found - wanted), sorted(wanted - found)
    if more or less:
        raise BuildError(
            f"{block} is not what qeval/models/architectures.py says:"
            + (f" it has {', '.join(more)}, too" if more else "")
            + (" and" if more and less else "")
            + (f" it lacks {', '.join(less)}" if less else "")
        )


def blocks_path(model: PreTrainedModel) -> str | None:
    """Where the decoder blocks of any transformers model are: the table's entry, else the first list of
    as many modules as the config counts hidden layers; None where there is none."""
    kind = str(model.config.model_type)
    if kind in ARCHITECTURES:
        return ARCHITECTURES[kind].blocks
    n_layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = (n for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers)
    return next(lists, None)
