"""Makes a tiny checkpoint of one model in each format whose library quantizes in seconds on a CPU.

python make_packed.py MODEL_FOLDER OUT_FOLDER
"""

from __future__ import annotations

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
