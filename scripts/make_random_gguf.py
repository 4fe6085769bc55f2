#!/usr/bin/env python3
"""Write a .gguf file of StarCoder2's architecture with random weights, in the time that the disk takes.

Speed and memory depend on shapes, not on values. The file is written directly: no float model is made,
converted or quantized first. The vocabulary is made up (PPL and text mean nothing).

    python scripts/make_random_gguf.py OUT.gguf --shape starcoder2-15b --type Q8_0
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

SHAPES = {  # of starcoder2's config.json
    "starcoder2-15b": {
        "vocab": 49152,
        "width": 6144,
        "inner": 24576,
        "blocks": 40,
        "heads": 48,
        "kv_heads": 4,
    },
    "small": {"vocab": 49152, "width": 576, "inner": 1536, "blocks": 30, "heads": 9, "kv_heads": 3},
}
BYTES = {"F32": (1, 4), "F16": (1, 2), "Q8_0": (32, 34)}  # weights and bytes of a block
CHUNK = 2**24  # weights that are drawn once and repeated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="starcoder2-15b")
    parser.add_argument("--type", choices=sorted(BYTES), default="F16")
    args = parser.parse_args()
    write(args.out, SHAPES[args.shape], args.type)
    print(f"{args.out}: {args.out.stat().st_size / 2**30:.2f} GiB")


def write(out: Path, shape: dict[str, int], kind: str) -> None:
    writer = GGUFWriter(out, "starcoder2")
    metadata(writer, shape)
    block, size = BYTES[kind]
    listed = list(tensors(shape))
    for name, dims in listed:
        of_type = kind if len(dims) > 1 else "F32"
        n_bytes = prod(dims) // BYTES[of_type][0] * BYTES[of_type][1]
        dtype: Any = np.float16 if of_type == "F16" else np.float32
        stored = GGMLQuantizationType[of_type]
        # of a quantized type it wants the shape in bytes
        as_bytes = (*dims[:-1], dims[-1] // block * size)
        if of_type == "Q8_0":
            writer.add_tensor_info(name, as_bytes, np.dtype(np.uint8), n_bytes, raw_dtype=stored)
        else:
            writer.add_tensor_info(name, dims, np.dtype(dtype), n_bytes, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    chunk = drawn(kind)
    assert writer.fout is not None
    with_data = writer.fout[0]
    writer.write_padding(with_data, with_data.tell())
    for name, dims in listed:
        if len(dims) == 1:
            value = float("norm" in name and name.endswith("weight"))
            data = np.full(dims, value, np.float32).tobytes()
            with_data.write(data)
            left, n_bytes = 0, len(data)
        else:
            left = n_bytes = prod(dims) // block * size
        while left:
            left -= with_data.write(chunk[: min(left, len(chunk))])
        writer.write_padding(with_data, n_bytes)
    writer.close()


def metadata(writer: GGUFWriter, shape: dict[str, int]) -> None:
    writer.add_context_length(16384)
    writer.add_embedding_length(shape["width"])
    writer.add_block_count(shape["blocks"])
    writer.add_feed_forward_length(shape["inner"])
    writer.add_head_count(shape["heads"])
    writer.add_head_count_kv(shape["kv_heads"])
    writer.add_layer_norm_eps(1e-5)
    writer.add_rope_freq_base(100000.0)
    writer.add_vocab_size(shape["vocab"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{i}" for i in range(shape["vocab"])])
    writer.add_token_types([1] * shape["vocab"])
    writer.add_token_merges(["t 0"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)


def tensors(shape: dict[str, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes as in torch, [out_features, in_features]."""
    width, inner, vocab = shape["width"], shape["inner"], shape["vocab"]
    kv = width // shape["heads"] * shape["kv_heads"]
    yield "token_embd.weight", (vocab, width)
    for i in range(shape["blocks"]):
        for name, dims in {
            "attn_norm": (width,),
            "attn_q": (width, width),
            "attn_k": (kv, width),
            "attn_v": (kv, width),
            "attn_output": (width, width),
            "ffn_norm": (width,),
            "ffn_up": (inner, width),
            "ffn_down": (width, inner),
        }.items():
            yield f"blk.{i}.{name}.weight", dims
            yield f"blk.{i}.{name}.bias", dims[:1]
    yield "output_norm.weight", (width,)
    yield "output_norm.bias", (width,)
    yield "output.weight", (vocab, width)


def drawn(kind: str) -> bytes:
    """CHUNK weights of standard deviation 0.02 as they are stored."""
    rng = np.random.default_rng(0)
    if kind == "Q8_0":
        blocks = np.zeros(CHUNK // 32, [("scale", np.float16), ("q", np.int8, 32)])
        blocks["scale"] = 0.02 / 73  # of whole numbers that are uniform in -127 .. 127
        blocks["q"] = rng.integers(-127, 128, (CHUNK // 32, 32), dtype=np.int8)
        return blocks.tobytes()
    values = 0.02 * rng.standard_normal(CHUNK, dtype=np.float32)
    return values.astype(np.float16 if kind == "F16" else np.float32).tobytes()


if __name__ == "__main__":
    main()
