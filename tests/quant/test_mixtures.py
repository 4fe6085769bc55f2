"""Routers stay floats under every method, and what is built of a mixture of experts can be loaded. The
builds are quantized.py's; the models are transformers' own classes, tiny or without weights."""

from __future__ import annotations

import numpy as np
import pytest

from qeval.core.errors import UsageError
from qeval.formats.limits import check_widths
from qeval.models.experts import experts_as_linears
from qeval.models.linears import linears, router_names
from qeval.models.routers import routers
from qeval.models.weights import linear_shapes, read_data, read_tensors, turned_linears

EXPERTS = {f"l.0.mlp.experts.{i}.{n}.weight": (32, 64) for i in range(4) for n in ("up", "down")}
STACK = {"l.0.mlp.experts.gate_up_proj": (4, 64, 64)}


@pytest.mark.parametrize("held", [EXPERTS, STACK])
@pytest.mark.parametrize(
    ("name", "n_out", "is_router"),
    [
        ("l.0.mlp.gate", 4, True),
        ("l.0.mlp.gate", 6, True),  # two of them are no experts (LongCat)
        ("l.0.mlp.gate.wg", 4, True),  # HunYuan
        ("l.0.mlp.gate.gate_proj", 4, True),
        ("l.0.mlp.gate.net.0", 16, True),
        ("l.0.mlp.wg", 4, True),
        ("l.0.mlp.router", 4, True),
        ("l.0.mlp.router.layer", 4, True),
        ("l.0.mlp.router.classifier", 6, True),
        ("l.0.mlp.router_gate", 8, True),
        ("l.0.mlp.selector", 4, True),  # by its outputs alone
        ("l.0.mlp.expert_selector", 4, True),
        ("l.0.mlp.routing.down", 2, True),
        ("l.0.router.proj", 4, True),  # beside the feed-forward
        ("l.0.gate", 4, True),
        ("l.0.gate", 64, False),
        ("l.0.mlp.shared_expert_gate", 1, True),
        ("l.0.mlp.shared_experts.gate_proj", 4, False),
        ("l.0.mlp.shared_expert.up_proj", 4, False),
        ("l.0.mlp.experts.3.gate_proj", 4, False),
        ("l.0.mlp.selector", 5, False),
        ("l.0.self_attn.gate", 64, False),
        ("l.0.self_attn.gate_proj", 4, False),
        ("l.1.mlp.gate_proj", 4, False),  # a dense block
        ("lm_head", 4, False),
    ],
)
def test_a_router_is_found_by_its_name_or_by_its_place(held, name, n_out, is_router):
    shapes = {**held, f"{name}.weight": (n_out, 64), "l.0.norm.weight": (64,)}
    assert (name in routers(shapes)) == is_router


def test_a_dense_model_has_no_routers_whatever_its_gates_are_called():
    shapes = {
        "l.0.mlp.gate.weight": (64, 64),
        "l.0.mlp.up.weight": (64, 64),
        "l.0.mlp.gate_proj": (4, 64),
    }
    assert routers(shapes) == frozenset()


def test_a_feed_forward_as_wide_as_there_are_experts_is_none():
    dense = {f"l.0.mlp.{n}.weight": (4, 64) for n in ("gate_proj", "up_proj")}
    dense |= {"l.0.mlp.down_proj.weight": (64, 4)}
    assert routers({**EXPERTS, **dense}) == frozenset()


_TINY = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
KINDS = {
    "hunyuan_v1_moe": ({"num_experts": 4, "moe_topk": 2, "head_dim": 16}, {"mlp.gate.wg"}),
    "jetmoe": (
        {"num_local_experts": 4, "kv_channels": 16},
        {"mlp.router.layer", "self_attention.experts.router.layer"},
    ),
    "phimoe": ({"num_local_experts": 4}, {"mlp.router"}),
    "jamba": (
        {"num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_offset": 0,
         "expert_layer_period": 1, "use_mamba_kernels": False, "mamba_d_state": 4},
        {"feed_forward.router"},
    ),
    "aria_text": ({"moe_num_experts": 4, "moe_topk": 2}, {"mlp.router"}),
    "afmoe": (
        {"num_experts": 4, "num_dense_layers": 0, "moe_intermediate_size": 16, "head_dim": 16},
        {"mlp.router.gate"},
    ),
    "qwen2_moe": (
        {"num_experts": 4, "moe_intermediate_size": 16},
        {"mlp.gate", "mlp.shared_expert_gate"},
    ),
    "mixtral": ({"num_local_experts": 4}, {"mlp.gate"}),
    "gpt_oss": ({"num_local_experts": 4, "head_dim": 16}, {"mlp.router"}),
    "llama": ({}, set()),
    "gemma3_text": ({"head_dim": 16}, set()),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_routers_of_transformers_models_are_found(kind):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    more, wanted = KINDS[kind]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**_TINY, **more}))
    found = router_names(model)
    assert {name.partition("layers.")[2].partition(".")[2] for name in found} - {""} == wanted
    with experts_as_linears(model):
        assert found.isdisjoint(layer.name for layer in linears(model))


LIBRARIES = (
    *("hunyuan-gptq-8", "hunyuan-bnb-4", "hunyuan-hqq-8", "hunyuan-torchao-int8wo", "hunyuan-quanto-8"),
    *("hunyuan-ct-rtn", "hunyuan-round-0"),
)


@pytest.mark.parametrize("name", LIBRARIES)
def test_every_library_leaves_routers_as_they_are(quantized, name):
    artifact = quantized.artifact(name)
    router = "model.layers.0.mlp.gate.wg"
    assert router not in {layer.name for layer in artifact.layers}
    assert any("linears left as" in note and "gate.wg" in note for note in artifact.notes)
    stored = _floats(artifact.path, f"{router}.weight")
    assert np.array_equal(stored, _floats(quantized.folder / "hunyuan", f"{router}.weight"))
    assert quantized.divergence(name) < (0.02 if "-4" in name else 0.002)


def _floats(folder, name: str) -> np.ndarray:
    tensor = next(t for t in read_tensors(folder) if t.name == name)
    raw = np.frombuffer(read_data(tensor), {"F32": np.uint32, "BF16": np.uint16}[tensor.dtype])
    wide = raw if tensor.dtype == "F32" else raw.astype(np.uint32) << 16
    return wide.view(np.float32)


@pytest.mark.parametrize("name", ["hunyuan-hqq-8", "hunyuan-quanto-8"])
def test_experts_that_a_library_cannot_quantize_are_said_to_be_floats(quantized, name):
    notes = quantized.artifact(name).notes
    assert (
        "67% of the parameters outside embeddings are not in linear layers: left unquantized" in notes
    )


@pytest.mark.parametrize("name", ["neox-hqq-8", "neox-quanto-8", "mixtral-ct-rtn"])
def test_names_that_transformers_changes_on_saving_are_found_again(quantized, name):
    assert quantized.divergence(name) < 0.002


def test_experts_that_transformers_would_not_find_again_are_refused(quantized):
    assert "in one tensor only: use rtn" in quantized.build_error("stacked-ct-rtn")


def test_auto_round_without_tuning_reads_no_data(quantized):
    """The text that its options name is not there."""
    assert quantized.artifact("hunyuan-round-0").calibration is None


@pytest.fixture
def gpt2(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=64, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    return tmp_path


def test_gpt2s_linears_are_the_other_way_round(gpt2):
    """[in, out] in the file, [out, in] for whoever asks; the square one does not matter."""
    shapes = {
        name.removeprefix("transformer.h.0."): shape for name, shape in linear_shapes(gpt2).items()
    }
    assert shapes == {
        "attn.c_attn": (192, 64),
        "attn.c_proj": (64, 64),
        "mlp.c_fc": (256, 64),
        "mlp.c_proj": (64, 256),
    }
    assert [name.rpartition("0.")[2] for name in sorted(turned_linears(gpt2))] == [
        "attn.c_attn",
        "mlp.c_fc",
        "mlp.c_proj",
    ]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("hqq", {}),
        ("quanto", {}),
        ("torchao", {}),
        ("compressed-tensors", {"group_size": 32}),
    ],
)
def test_a_library_that_knows_no_conv1d_refuses_gpt2_before_any_job(gpt2, method, options):
    from qeval.core.artifact import ModelRef
    from qeval.quant.base import METHODS

    found = METHODS[method]()
    with pytest.raises(
        UsageError, match=rf"{method}: .* Conv1D in their place \(transformer.h.0.*: use rtn"
    ):
        found.preflight(found.Options(**options), ModelRef("gpt2", gpt2, "sha256:0", "bfloat16"))


def test_a_router_may_have_any_width(model_of):
    """4 experts: no multiple of anything."""
    held = {f"layers.0.mlp.experts.{i}.up_proj": (64, 64) for i in range(4)}
    check_widths(
        "m", model_of({**held, "layers.0.mlp.gate.wg": (4, 48)}), 32, inputs_of=32, outputs_of=32
    )
