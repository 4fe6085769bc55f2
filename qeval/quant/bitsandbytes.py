"""`bitsandbytes`: LLM.int8() (arXiv 2208.07339), and the 4-bit types of QLoRA (arXiv 2305.14314).

Through transformers' own BitsAndBytesConfig: what ``load_in_8bit`` and ``load_in_4bit`` give. Without
calibration. 8 bit: one scale per output channel, inputs of large magnitude kept in 16 bits when it
runs. 4 bit: blocks of 64 weights on the NF4 or FP4 grid.
"""

from __future__ import annotations

from typing import ClassVar, Literal, final

from pydantic import Field, model_validator

from qeval.core.artifact import Artifact, ModelRef
from qeval.core.errors import raise_all
from qeval.core.options import Options
from qeval.quant.base import BuildContext, Method, Packages


class BitsAndBytesOptions(Options):
    num_bits: Literal[8, 4] = 4
    type: Literal["nf4", "fp4"] | None = None  # of 4 bits; None: nf4
    double_quant: bool = False  # 4 bits: the scales are quantized too, which saves 0.37 bits a weight
    llm_int8_threshold: float | None = Field(default=None, ge=0)
    # 8 bits: input channels that reach it are computed in 16 bits; None: the library's 6.0

    @model_validator(mode="after")
    def _consistent(self) -> BitsAndBytesOptions:
        if self.num_bits == 8 and (self.type is not None or self.double_quant):
            raise ValueError("type and double_quant belong to num_bits: 4: drop them")
        if self.num_bits == 4 and self.llm_int8_threshold is not None:
            raise ValueError("llm_int8_threshold belongs to num_bits: 8: drop it")
        return self

    def identity(self) -> dict[str, object]:
        """With the defaults that are used filled in."""
        if self.num_bits == 8:
            threshold = 6.0 if self.llm_int8_threshold is None else self.llm_int8_threshold
            return {"num_bits": 8, "llm_int8_threshold": threshold}
        return {"num_bits": 4, "type": self.type or "nf4", "double_quant": self.double_quant}


@final
class BitsAndBytes(Method[BitsAndBytesOptions]):
    version: ClassVar[int] = 2  # 2: routers stay floats
    Options: ClassVar[type[Options]] = BitsAndBytesOptions
    scalar: ClassVar[str | None] = "num_bits"
    engine: ClassVar[str | None] = "hf"

    def label(self, options: BitsAndBytesOptions) -> str:
        chosen = options.identity()
        if options.num_bits == 8:
            threshold = chosen["llm_int8_threshold"]
            return "LLM.int8()" + (f" threshold {threshold:g}" if threshold != 6.0 else "")
        return str(chosen["type"]).upper() + " double" * options.double_quant

    def rounds_activations(self, options: BitsAndBytesOptions) -> bool:
        return options.num_bits == 8

    def packages(self, options: BitsAndBytesOptions) -> tuple[Packages, ...]:
        return (Packages("bitsandbytes", ("torch", "transformers", "accelerate", "bitsandbytes")),)

    def check_device(self, options: BitsAndBytesOptions, model: ModelRef, device: str) -> None:
        from qeval.formats.bitsandbytes import check_4bit_on_cpu
        from qeval.models.weights import linear_shapes

        if options.num_bits == 4 and device == "cpu" and model.path.is_dir():
            check_4bit_on_cpu(self.label(options), linear_shapes(model.path))

    def simulates(self, options: BitsAndBytesOptions) -> bool:
        return False

    def weight_bits(self, options: BitsAndBytesOptions, dtype: str) -> float:
        return options.num_bits

    def preflight(self, options: BitsAndBytesOptions, model: ModelRef) -> None:
        from qeval.formats.limits import check_folder

        raise_all(lambda: self.check_packages(options), lambda: check_folder("bitsandbytes", model))

    def build(self, options: BitsAndBytesOptions, context: BuildContext) -> Artifact:
        """Raises EngineError where transformers cannot load the model."""
        import torch
        from transformers import BitsAndBytesConfig

        from qeval.models.linears import device_of
        from qeval.models.loading import load_model
        from qeval.quant.libraries.finish import finish, left_alone

        chosen, left = options.identity(), left_alone(context.model)
        if options.num_bits == 8:
            config = BitsAndBytesConfig(
                load_in_8bit=True,
                llm_int8_threshold=chosen["llm_int8_threshold"],
                llm_int8_skip_modules=left,
            )
        else:
            config = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=chosen["type"],
                bnb_4bit_use_double_quant=options.double_quant,
                bnb_4bit_compute_dtype=getattr(torch, context.model.dtype),
                llm_int8_skip_modules=left,  # of 4 bits, too
            )
        model = load_model(
            context.model.path,
            context.model.dtype,
            device_of(context.device),
            context.model.trust_remote_code,
            quantization_config=config,
        )
        folder = context.out / "model"
        # Before any forward: that reorders 4-bit weights in place for the CPU's kernel, and a later
        # save writes them so.
        model.save_pretrained(folder, max_shard_size="4GB")
        return finish(folder, context, "bitsandbytes")
