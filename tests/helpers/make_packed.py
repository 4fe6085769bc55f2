"""Makes a tiny checkpoint of one model in each format whose library quantizes in seconds on a CPU.

python make_packed.py MODEL_FOLDER OUT_FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel


def float_model(path: Path, **settings: object) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float16, **settings)


def bitsandbytes(path: Path, out: Path) -> None:
    from transformers import BitsAndBytesConfig

    kinds: dict[str, dict[str, Any]] = {
        "bnb-int8": {"load_in_8bit": True},
        "bnb-nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        "bnb-fp4-double": {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "fp4",
            "bnb_4bit_use_double_quant": True,
        },
    }
    for name, options in kinds.items():
        config = BitsAndBytesConfig(**options)
        float_model(path, quantization_config=config).save_pretrained(out / name)


def quanto(path: Path, out: Path) -> None:
    from optimum.quanto import QuantizedModelForCausalLM, qfloat8, qint4, qint8

    for kind in (qint8, qint4, qfloat8):
        model = QuantizedModelForCausalLM.quantize(float_model(path), weights=kind, exclude="lm_head")
        model.save_pretrained(out / f"quanto-{kind.name}")


def quanto_in_other_dtypes(out: Path) -> None:
    """quanto-rounding.json: how far qeval's engine is in float16 and bfloat16 from float32 (a share of
    the logits' norm), of files in float16."""
    import numpy as np

    from qeval.core.settings import EngineSettings
    from qeval.engines.hf import HfEngine
    from qeval.formats.describe import describe_folder

    artifact, found = describe_folder(out / "quanto-qint8", "float16"), {}
    for dtype in ("float16", "bfloat16", "float32"):
        settings = EngineSettings(device="cpu", dtype=dtype, n_threads=1)
        found[dtype] = HfEngine.open(artifact, settings).logits([7 * i % 512 for i in range(16)])
    exact = found.pop("float32")
    shares = [float(np.linalg.norm(x - exact) / np.linalg.norm(exact)) for x in found.values()]
    (out / "quanto-rounding.json").write_text(json.dumps(shares))


def hqq(path: Path, out: Path) -> None:
    from hqq.core.quantize import BaseQuantizeConfig
    from hqq.models.hf.base import AutoHQQHFModel

    for bits in (3, 4):
        model = float_model(path)
        config = BaseQuantizeConfig(nbits=bits, group_size=64, axis=1)
        AutoHQQHFModel.quantize_model(
            model, quant_config=config, compute_dtype=torch.float16, device="cpu"
        )
        AutoHQQHFModel.save_quantized(model, str(out / f"hqq-{bits}"))


def torchao(path: Path, out: Path) -> None:
    from torchao.quantization import (
        Float8WeightOnlyConfig,
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
    )
    from transformers import TorchAoConfig

    for name, config in {
        "torchao-int8wo": Int8WeightOnlyConfig(),
        "torchao-int8dyn": Int8DynamicActivationInt8WeightConfig(),
        "torchao-fp8wo": Float8WeightOnlyConfig(),
    }.items():
        model = float_model(path, quantization_config=TorchAoConfig(config))
        model.save_pretrained(out / name)
        if name == "torchao-int8wo":
            folder = out / "torchao-bin"
            model.save_pretrained(folder)
            (folder / "model.safetensors").unlink()
            torch.save(model.state_dict(), folder / "pytorch_model.bin")
    _torchao_int4(out)


def _torchao_int4(out: Path) -> None:
    """A file of its own tensor class: torchao's quantizer to it needs a GPU."""
    from safetensors.torch import save_file
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import Int4Tensor

    scales = torch.rand(1, 256).bfloat16(), torch.rand(1, 256).bfloat16()
    packed = Int4Tensor(torch.zeros(256, 64).char(), *scales, [1, 128], torch.Size([256, 128]))
    state = {"model.layers.0.mlp.up_proj.weight": packed, "model.norm.weight": torch.rand(128)}
    torch.save(state, out / "torchao-int4.bin")
    tensors, metadata = flatten_tensor_state_dict(state)
    save_file(tensors, out / "torchao-int4.safetensors", metadata)


def llm_compressor(path: Path, out: Path) -> None:
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier

    for scheme in ("W4A16", "W4A16_ASYM", "W8A8", "FP8_DYNAMIC", "FP8_BLOCK", "NVFP4A16", "MXFP4A16"):
        model = float_model(path)
        modifier = QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"])
        oneshot(model=model, recipe=modifier)
        model.save_pretrained(out / f"ct-{scheme}", save_compressed=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for make in (bitsandbytes, quanto, hqq, torchao, llm_compressor):
        make(Path(sys.argv[1]), Path(sys.argv[2]))
    quanto_in_other_dtypes(Path(sys.argv[2]))
