#!/usr/bin/env python3
"""Write a Hugging Face folder with the shape of a known model and random weights.

Memory and speed depend on shapes, not on values, so they can be measured for models whose weights
cannot be fetched (PPL of such a model means nothing). The tokenizer is a byte-level BPE of 512 tokens,
or with ``--code`` one as large as the model's vocabulary, learnt from Python's own library (half a
minute): prompts of code are then about as long as with a real one, and what the model draws is text.
GGUF needs its pre-tokenizer named: ``gguf: {type: Q8_0, pre_tokenizer: gpt-2}``.

    python scripts/make_random_model.py starcoder2-15b OUT
    python scripts/make_random_model.py starcoder2-15b OUT --packed gptq --bits 4 --group-size 128
    python scripts/make_random_model.py starcoder2-15b OUT --packed fp8

``--packed`` writes random packed values without ever holding the float model: what a quantizer would
leave, for the memory and speed of kernels. They have the standard layout of GPTQ or AWQ
(quant.libraries.unpack), or that of llm-compressor's FP8_DYNAMIC: one scale an output channel, and the
inputs of a linear are rounded token by token while it runs.
"""

from __future__ import annotations

import argparse
import json
import pydoc_data.topics
import sysconfig
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

_LATENT: dict[str, Any] = {  # DeepSeek-V2-Lite's, without its long contexts
    "model_type": "deepseek_v2",
    "q_lora_rank": None,
    "first_k_dense_replace": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "n_group": 1,
    "topk_group": 1,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}

# The large ones from their config.json on the hub; the tiny ones for a quick look at the whole line.
SHAPES: dict[str, dict[str, Any]] = {
    "starcoder2-15b": {
        "model_type": "starcoder2",
        "vocab_size": 49152,
        "hidden_size": 6144,
        "intermediate_size": 24576,
        "num_hidden_layers": 40,
        "num_attention_heads": 48,
        "num_key_value_heads": 4,
        "max_position_embeddings": 16384,
        "sliding_window": 4096,
        "use_bias": True,
        "rope_theta": 100000,
        "tie_word_embeddings": False,
    },
    "tinyllama-4-blocks": {  # 4 of TinyLlama-1.1B's 22 blocks: widths that every kernel takes
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 4,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    },
    "tiny-llama": {
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 172,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    },
    "deepseek-v2-lite": {
        **_LATENT,
        "vocab_size": 102400,
        "hidden_size": 2048,
        "intermediate_size": 10944,
        "moe_intermediate_size": 1408,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
    },
    "deepseek-v2-tiny": {
        **_LATENT,
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 704,
        "moe_intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "kv_lora_rank": 64,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
    },
    "starcoder2-tiny": {
        "model_type": "starcoder2",
        "vocab_size": 512,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "use_bias": True,
        "tie_word_embeddings": False,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--config", action="store_true", help="no weights: what bench_vllm.py --dummy reads"
    )
    parser.add_argument("--code", action="store_true", help="a tokenizer of the model's vocabulary")
    parser.add_argument("--packed", choices=("gptq", "awq", "fp8"))
    parser.add_argument("--bits", type=int, choices=(2, 4, 8), default=4)
    parser.add_argument("--group-size", type=int, default=128)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    shape = dict(SHAPES[args.shape])
    config = AutoConfig.for_model(shape.pop("model_type"), bos_token_id=0, eos_token_id=0, **shape)
    tokenizer(config.vocab_size if args.code else 512, code=args.code).save_pretrained(args.out)
    if args.config:
        config.architectures = [_class(config)]
        config.save_pretrained(args.out)
        return
    if args.packed:
        save_packed(config, args.packed, args.bits, args.group_size, args.out)
        return
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(args.out, max_shard_size="4GB")
    n = sum(p.numel() for p in model.parameters())
    print(f"{args.out}: {n / 1e9:.2f} B parameters, {n * 2 / 2**30:.2f} GiB in bfloat16")


def _class(config: Any) -> str:
    with torch.device("meta"):
        return type(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)).__name__


def save_packed(config: Any, kind: str, bits: int, group: int, out: Path) -> None:
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    head = model.get_output_embeddings()
    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head}
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, like in model.state_dict().items():
        prefix, _, last = name.rpartition(".")
        if prefix in linear and last == "weight":
            parts = packed(kind, like.shape[0], like.shape[1], bits, group, device)
            made = {f"{prefix}.{part}": value for part, value in parts.items()}
        elif like.ndim == 1:
            made = {
                name: torch.full(
                    like.shape, float("norm" in name and last == "weight"), dtype=like.dtype
                )
            }
        else:
            made = {name: (torch.randn(like.shape, device=device) * 0.02).to(like.dtype).cpu()}
        if sum(t.nbytes for t in shards[-1].values()) > 4e9:
            shards.append({})
        shards[-1] |= made
    index: dict[str, Any] = {"metadata": {"total_size": 0}, "weight_map": {}}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        save_file(shard, out / file, metadata={"format": "pt"})
        index["weight_map"] |= dict.fromkeys(shard, file)
        index["metadata"]["total_size"] += sum(t.nbytes for t in shard.values())
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    config.architectures = [type(model).__name__]
    config.dtype = torch.bfloat16
    config.quantization_config = _described(kind, bits, group)
    config.save_pretrained(out)
    what = kind if kind == "fp8" else f"{kind} {bits} bits g{group}"
    print(f"{out}: {index['metadata']['total_size'] / 2**30:.2f} GiB, {what}")


def _described(kind: str, bits: int, group: int) -> dict[str, Any]:
    """What config.json says of the weights."""
    if kind == "fp8":
        float8 = {"num_bits": 8, "type": "float", "symmetric": True}
        scheme = {
            "targets": ["Linear"],
            "weights": {**float8, "strategy": "channel", "dynamic": False},
            "input_activations": {**float8, "strategy": "token", "dynamic": True},
            "output_activations": None,
            "format": "float-quantized",
        }
        return {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": scheme},
            "ignore": ["lm_head"],
        }
    common = {"quant_method": kind, "bits": bits, "group_size": group, "lm_head": False}
    if kind == "gptq":
        return {**common, "sym": True, "desc_act": False, "checkpoint_format": "gptq"}
    return {**common, "zero_point": True, "version": "gemm", "modules_to_not_convert": None}


def packed(
    kind: str, out: int, into: int, bits: int, group: int, device: str
) -> dict[str, torch.Tensor]:
    """Random values of one linear [out, into]; its scales keep outputs near the inputs in size."""
    if kind == "fp8":
        scale = torch.full((out, 1), into**-0.5, dtype=torch.bfloat16)
        values = torch.randn((out, into), device=device).to(torch.float8_e4m3fn)
        return {"weight": values.cpu(), "weight_scale": scale}

    def words(*shape: int) -> torch.Tensor:
        return torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32, device=device).cpu()

    scales = torch.full((into // group, out), 3.0 / (2**bits * into**0.5), dtype=torch.float16)
    middle = 2 ** (bits - 1)
    if kind == "awq":
        zero = sum(middle << shift for shift in range(0, 32, bits))
        zeros = torch.full((into // group, out * bits // 32), zero - 2**32, dtype=torch.int32)
        return {"qweight": words(into, out * bits // 32), "qzeros": zeros, "scales": scales}
    zero = sum((middle - 1) << shift for shift in range(0, 32, bits))  # stored less one
    return {
        "qweight": words(into * bits // 32, out),
        "qzeros": torch.full((into // group, out * bits // 32), zero, dtype=torch.int32),
        "scales": scales,
        "g_idx": torch.arange(into, dtype=torch.int32) // group,
    }


def tokenizer(size: int, *, code: bool) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = sorted(pydoc_data.topics.topics.values())
    bpe.train_from_iterator([*texts, *_library()] if code else texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )


def _library() -> list[str]:
    """The modules of Python's own library, without what is installed beside them."""
    folder = Path(sysconfig.get_path("stdlib"))
    files = sorted(p for p in folder.rglob("*.py") if "-packages" not in str(p.relative_to(folder)))
    return [path.read_text(encoding="utf-8", errors="replace") for path in files]


if __name__ == "__main__":
    main()
