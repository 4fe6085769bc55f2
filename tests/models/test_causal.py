"""Masked-language models and encoders are refused before any job, and on the running model."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from qeval.core.errors import EngineError, ModelError
from qeval.llama.gguf_file import Header
from qeval.models.causal import check_causal, check_causal_gguf
from qeval.models.loading import check_causal as check_running


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "llama"}, None),
        ({"model_type": "bert"}, "bert is a masked-language model"),
        ({"model_type": "bert", "is_decoder": False}, "bert is a masked-language model"),
        ({"model_type": "bert", "is_decoder": True}, None),
        ({"model_type": "roberta"}, "it masks them where is_decoder is true"),
        ({"model_type": "xlm-roberta"}, "xlm-roberta is a masked-language model"),
        ({"model_type": "electra"}, "electra is a masked-language model"),
        ({"model_type": "xlm"}, "it masks them where causal is true"),
        ({"model_type": "xlm", "causal": True}, None),
        ({"model_type": "distilbert"}, "has no causal language model of that kind"),
        ({"model_type": "modernbert"}, "has no causal language model of that kind"),
        ({"model_type": "deberta-v2"}, "has no causal language model of that kind"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "t5 is an encoder with a decoder"),
        ({"model_type": "t5"}, "has no causal language model of that kind"),
        ({"model_type": "bart"}, "bart is an encoder with a decoder"),
        ({"model_type": "bart", "is_encoder_decoder": False}, None),
        ({"model_type": "own", "auto_map": {"AutoModelForCausalLM": "own.Own"}}, None),
        ({"model_type": "own", "auto_map": {"AutoModel": "own.Own"}}, "no causal language model"),
    ],
)
def test_what_a_configuration_says(tmp_path, config, message):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    if message is None:
        check_causal(file)
        return
    with pytest.raises(ModelError, match=message) as caught:
        check_causal(file)
    assert "\n" not in str(caught.value) and str(file) in str(caught.value)


def test_every_head_that_transformers_warns_of_is_in_the_table():
    """Those that say "add is_decoder=True" where the configuration does not."""
    from pathlib import Path

    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KINDS

    from qeval.models.causal import _MASKED_IF

    folder = Path(transformers.__file__).parent / "models"
    sources = (f.read_text() for f in folder.glob("*/modeling_*.py"))
    warned = {kind for text in sources if "as a standalone, add `is" in text for kind in KINDS
              if f"class {KINDS[kind]}(" in text}  # fmt: skip
    assert len(warned) > 12
    assert warned <= _MASKED_IF.keys()


@pytest.mark.parametrize(
    ("metadata", "refused"),
    [
        ({"general.architecture": "llama"}, False),
        ({"general.architecture": "bert", "bert.attention.causal": False}, True),
        ({"general.architecture": "qwen3", "qwen3.attention.causal": True}, False),
        ({"general.architecture": "t5encoder"}, True),
        ({"general.architecture": "dream"}, True),
    ],
)
def test_what_a_gguf_file_says(tmp_path, metadata, refused):
    header = Header(metadata, ())
    if not refused:
        check_causal_gguf(tmp_path / "m.gguf", header)
        return
    with pytest.raises(ModelError, match="no causal language model"):
        check_causal_gguf(tmp_path / "m.gguf", header)


TINY = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "more", "causal"),
    [
        ("llama", {}, True),
        ("mamba", {}, True),
        ("bert", {"is_decoder": True}, True),
        ("bert", {"is_decoder": False}, False),
        ("xlnet", {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 32}, False),
    ],
)
def test_a_running_model_is_asked_whether_it_sees_what_is_to_come(kind, more, causal):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    own = {"initializer_range": 0.3} if kind == "xlnet" else TINY
    config = AutoConfig.for_model(kind, **{**own, "vocab_size": 64, **more})
    model = AutoModelForCausalLM.from_config(config).eval()
    if causal:
        check_running(model)
        return
    with pytest.raises(EngineError, match="no causal language model"):
        check_running(model)


def test_a_model_that_answers_nan_is_not_called_blind():
    """Broken logits are the tasks' to name."""
    import torch

    def broken(input_ids, use_cache):
        return SimpleNamespace(logits=torch.full((*input_ids.shape, 64), torch.nan))

    broken.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=64))
    broken.device = "cpu"
    check_running(broken)
