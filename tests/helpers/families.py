"""Tiny models of every family in the laboratory's table, and how quantized ones predict."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qeval.core.artifact import Artifact, CalibrationFacts, ModelRef
from qeval.core.options import Options
from qeval.core.settings import EngineSettings
from qeval.data.calibration import Calibration
from qeval.engines.hf import HfEngine
from qeval.formats.describe import describe_folder
from qeval.quant.base import BuildContext, Method

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SHARED = {
    "vocab_size": 256,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,  # at the default 0.02 every prediction is nearly uniform
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_GATED = {"intermediate_size": 96, "num_key_value_heads": 2}
_DENSE_FIRST = {"mlp_only_layers": [0], "moe_intermediate_size": 32, "num_experts_per_tok": 2}
_LATENT = {
    "intermediate_size": 96,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "num_key_value_heads": 4,
    "q_lora_rank": None,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _GATED,
    "mistral": {**_GATED, "sliding_window": 16},
    "qwen2": _GATED,
    "qwen3": {**_GATED, "head_dim": 16},
    "gemma": {**_GATED, "head_dim": 16},
    "starcoder2": {"intermediate_size": 128, "num_key_value_heads": 2},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "bloom": {},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "gpt2": {},
    "mixtral": {**_GATED, "num_local_experts": 6},
    "olmoe": {**_GATED, "num_experts": 6, "num_experts_per_tok": 2},
    "qwen2_moe": {**_GATED, "shared_expert_intermediate_size": 48, "num_experts": 6, **_DENSE_FIRST},
    "qwen3_moe": {**_GATED, "head_dim": 16, "num_experts": 6, **_DENSE_FIRST},
    "deepseek_v2": _LATENT,
    "deepseek_v3": {**_LATENT, "q_lora_rank": 32},
}
MIXTURES = tuple(kind for kind, config in FAMILIES.items() if any("experts" in key for key in config))
SHAPES = ("llama", "gpt2", "falcon", "mixtral", "deepseek_v3")
"""One of each shape of linear layers, for what knows no more of a family: plain and grouped, transposed
with biases, fused, experts, latent attention."""
STARVED = 5  # the expert of each of their layers that no token is routed to
WINDOWS = torch.randint(1, 256, (8, 64), generator=torch.Generator().manual_seed(1)).tolist()


def make_model(kind: str, **config: object) -> PreTrainedModel:
    """Random weights, seed 0, float32, two blocks; the last expert of a mixture starves."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    settings = {**_SHARED, **FAMILIES[kind], **config}
    made = AutoConfig.for_model(kind, **settings)
    model = AutoModelForCausalLM.from_config(made, dtype=torch.float32).eval()
    if kind in MIXTURES:
        _starve(model)
    return model


def _starve(model: PreTrainedModel) -> None:
    """Its routers' rows become a, -a, b, -b, c, 0: one of each pair comes before the last."""
    with torch.no_grad():
        for name, router in model.named_parameters():
            if name.endswith("mlp.gate.weight"):
                router[1:4:2] = -router[0:4:2]
                router[STARVED] = 0


def saved(folder: Path, kind: str, **config: object) -> ModelRef:
    make_model(kind, **config).save_pretrained(folder)
    return ModelRef(kind, folder, "sha256:0", "float32")


def drawn(windows: list[list[int]] = WINDOWS) -> Calibration:
    """A calibration that is always the same windows."""
    return Calibration(windows, CalibrationFacts(dataset="test", n_tokens=sum(map(len, windows))))


def build(
    method: Method[Any],
    options: Options,
    model: ModelRef,
    out: Path,
    windows: list[list[int]] = WINDOWS,
) -> Artifact:
    out.mkdir(exist_ok=True)
    steps: list[tuple[int, int, str]] = []
    context = BuildContext(
        model, out, None, lambda _: drawn(windows), lambda *p: steps.append(p), out, device="cpu"
    )
    artifact = method.build(options, context)
    assert steps[-1][0] == steps[-1][1]
    return artifact


def divergence(artifact: Artifact, model: ModelRef) -> float:
    """Mean KL divergence (nats) from the float model on the calibration windows, both by the engine."""
    settings = EngineSettings(device="cpu", dtype="float32")
    whole = HfEngine.open(describe_folder(model.path, "float32"), settings)
    other = HfEngine.open(artifact, settings)
    total = 0.0
    for ids in WINDOWS:
        a, b = (torch.tensor(lm.logits(ids)).log_softmax(-1) for lm in (whole, other))
        total += (a.exp() * (a - b)).sum(-1).mean().item()
    return total / len(WINDOWS)


def one_thread() -> Iterator[None]:
    """For a fixture. Thousands of tiny operations: a second thread costs more than it computes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
