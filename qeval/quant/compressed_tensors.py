"""`compressed-tensors`: llm-compressor's recipes, saved in the format that vLLM runs.

A scheme says what is stored (and whether activations are rounded too), an algorithm how the numbers are
found: rtn needs no data; gptq, awq and smoothquant+gptq read calibration windows.

transformers runs these checkpoints by unpacking each layer to floats on its first use: right numbers,
but neither the memory nor the speed of vLLM's kernels. The row says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, final

from pydantic import Field, model_validator

from qeval.core.artifact import Artifact, ModelRef
from qeval.core.errors import BuildError, first_line, raise_all
from qeval.core.options import Options
from qeval.data.calibration import CalibrationOptions
from qeval.models.config import read_json
from qeval.models.weights import read_tensors
from qeval.quant.base import BuildContext, Method, Packages

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_OF_EXPERT = re.compile(r"\.experts\.\d+\.(\w+)\.weight$")
_GROUPED = ("W4A16", "W4A16_ASYM", "W8A16")
_ALGORITHMS: dict[str, tuple[str, ...]] = {
    "W4A16": ("rtn", "gptq", "awq"),
    "W4A16_ASYM": ("rtn", "gptq", "awq"),
    "W8A16": ("rtn", "gptq", "awq"),
    "W8A8": ("rtn", "gptq", "smoothquant+gptq"),
    "FP8": ("rtn",),
}
_NAMES = {"rtn": "", "gptq": "GPTQ ", "awq": "AWQ ", "smoothquant+gptq": "SmoothQuant GPTQ "}


class CompressedTensorsOptions(Options):
    scheme: Literal["W4A16", "W4A16_ASYM", "W8A16", "W8A8", "FP8"] = "W4A16"
    algorithm: Literal["rtn", "gptq", "awq", "smoothquant+gptq"] = "rtn"
    group_size: int | None = Field(default=None, ge=16)  # None: 128; W8A8 and FP8 are per channel
    smoothing_strength: float | None = Field(default=None, ge=0, le=1)  # SmoothQuant's alpha; None: 0.5
    calibration: CalibrationOptions | None = None  # None: the defaults, where the algorithm reads any

    @model_validator(mode="after")
    def _consistent(self) -> CompressedTensorsOptions:
        known = _ALGORITHMS[self.scheme]
        if self.algorithm not in known:
            raise ValueError(f"algorithm of {self.scheme}: one of {', '.join(known)}")
        if self.group_size is not None and self.scheme not in _GROUPED:
            raise ValueError(f"{self.scheme} has one scale per output channel: drop group_size")
        if self.smoothing_strength is not None and self.algorithm != "smoothquant+gptq":
            raise ValueError("smoothing_strength belongs to algorithm: smoothquant+gptq: drop it")
        if self.calibration is not None and self.algorithm == "rtn":
            raise ValueError("algorithm rtn reads no calibration: drop it")
        return self

    @property
    def group(self) -> int | None:
        return (self.group_size or 128) if self.scheme in _GROUPED else None

    @property
    def smoothing(self) -> float | None:
        if self.algorithm != "smoothquant+gptq":
            return None
        return 0.5 if self.smoothing_strength is None else self.smoothing_strength

    @property
    def reads(self) -> CalibrationOptions | None:
        return None if self.algorithm == "rtn" else self.calibration or CalibrationOptions()

    def identity(self) -> dict[str, object]:
        """With the defaults that are used filled in."""
        return {
            "scheme": self.scheme,
            "algorithm": self.algorithm,
            "group_size": self.group,
            "smoothing_strength": self.smoothing,
            "calibration": self.reads.identity() if self.reads else None,
        }


@final
class CompressedTensors(Method[CompressedTensorsOptions]):
    version: ClassVar[int] = 2  # 2: routers stay floats
    Options: ClassVar[type[Options]] = CompressedTensorsOptions
    scalar: ClassVar[str | None] = "scheme"
    engine: ClassVar[str | None] = "hf"

    def label(self, options: CompressedTensorsOptions) -> str:
        scheme, _, asym = options.scheme.partition("_")
        wide = ("FP8 W8A8" if scheme == "FP8" else scheme) + (
            f"g{options.group}" if options.group else ""
        )
        smoothing = options.smoothing
        strength = f" {smoothing:g}" if smoothing not in (None, 0.5) else ""
        name = _NAMES[options.algorithm].replace("SmoothQuant", f"SmoothQuant{strength}")
        return f"{name}{wide}{' asym' if asym else ''} (llm-compressor)"

    def rounds_activations(self, options: CompressedTensorsOptions) -> bool:
        return options.scheme in ("W8A8", "FP8")

    def packages(self, options: CompressedTensorsOptions) -> tuple[Packages, ...]:
        modules = ("torch", "transformers", "accelerate", "compressed_tensors", "llmcompressor")
        return (Packages("compressed-tensors", modules),)

    def reads(self, options: CompressedTensorsOptions) -> CalibrationOptions | None:
        return options.reads

    def simulates(self, options: CompressedTensorsOptions) -> bool:
        return False

    def weight_bits(self, options: CompressedTensorsOptions, dtype: str) -> float:
        return 4 if options.scheme.startswith("W4") else 8

    def preflight(self, options: CompressedTensorsOptions, model: ModelRef) -> None:
        from qeval.formats.limits import check_no_conv1d, check_widths

        def check_shapes() -> None:
            check_no_conv1d("compressed-tensors", model)
            if options.group:
                check_widths(f"compressed-tensors {options.scheme}", model, options.group)

        raise_all(lambda: self.check_packages(options), check_shapes)

    def build(self, options: CompressedTensorsOptions, context: BuildContext) -> Artifact:
        """Raises BuildError where a recipe does not know the architecture."""
        import torch
        from llmcompressor import oneshot

        from qeval.models.linears import device_of
        from qeval.models.loading import load_model
        from qeval.quant.libraries.finish import finish

        source, device = context.model, device_of(context.device)
        if device.type == "cuda":
            torch.cuda.set_device(device)  # where the library puts the block that it works on
        drawn = context.calibration(options.reads) if options.reads else None
        data = _data(drawn.windows) if drawn else {}
        resting = "cpu" if drawn else device  # with data, blocks go to the device one at a time
        model = load_model(source.path, source.dtype, resting, source.trust_remote_code)
        _name_experts(model, source)
        try:
            with _no_pinning(device):
                oneshot(model=model, recipe=_recipe(options, model), **data)
        except (ValueError, TypeError, NotImplementedError, AttributeError, KeyError) as err:
            raise BuildError(f"llm-compressor cannot quantize {source.id}: {first_line(err)}") from err
        except RuntimeError as err:
            if isinstance(err, torch.OutOfMemoryError):
                raise
            raise BuildError(f"llm-compressor cannot quantize {source.id}: {first_line(err)}") from err
        folder = context.out / "model"
        left = _left_alone(model)
        model.save_pretrained(folder, save_compressed=True, max_shard_size="4GB")
        _ignore(folder, left)
        return finish(folder, context, "llmcompressor", drawn.facts if drawn else None)


def _left_alone(model: PreTrainedModel) -> list[str]:
    """The output head, and a mixture's routers."""
    from qeval.models.linears import head_name, router_names

    return [*filter(None, [head_name(model)]), *sorted(router_names(model))]


def _name_experts(model: PreTrainedModel, source: ModelRef) -> None:
    """A mixture's experts, of which the library makes linear layers, are saved by the names that they
    have in the source: Mixtral's are w1, w2 and w3.

    Raises:
        BuildError: the source has all experts of a layer in one tensor: transformers does not find
            single ones there.
    """
    from llmcompressor.modeling.moe.linearize import get_non_linearized_moes
    from transformers.core_model_loading import WeightRenaming

    if not get_non_linearized_moes(model):
        return
    names = {found[1] for t in read_tensors(source.path) if (found := _OF_EXPERT.search(t.name))}
    if not names:
        raise BuildError(
            f"llm-compressor saves the experts of {source.id} one by one, and transformers loads them "
            "in one tensor only: use rtn, gptq or gguf"
        )
    theirs = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    model._weight_conversions = [
        *(getattr(model, "_weight_conversions", None) or ()),
        *(
            WeightRenaming(rf"\.experts\.(\d+)\.{name}\.", rf".experts.\1.{theirs[name]}.")
            for name in sorted(names & theirs.keys())
        ),
    ]


def _ignore(folder: Path, names: list[str]) -> None:
    """Name the layers that are floats in config.json as they are called in the model, too: transformers
    saves them under the names of the original checkpoint, and does not find them by these."""
    file = folder / "config.json"
    config = read_json(file)
    quantization = config.get("quantization_config")
    if quantization is not None:
        quantization["ignore"] = list(dict.fromkeys([*quantization.get("ignore", ()), *names]))
        file.write_text(json.dumps(config, indent=2), encoding="utf-8")


def _recipe(options: CompressedTensorsOptions, model: PreTrainedModel) -> list[object]:
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    how: dict[str, object] = {
        "config_groups": {"group_0": _scheme(options)},
        "ignore": _left_alone(model),
    }
    smooth, awq = _mappings(model.config.model_type)
    match options.algorithm:
        case "gptq":
            return [GPTQModifier(**how)]
        case "awq":
            return [AWQModifier(mappings=awq), QuantizationModifier(**how)]
        case "smoothquant+gptq":
            strength = options.smoothing
            return [
                SmoothQuantModifier(smoothing_strength=strength, mappings=smooth),
                GPTQModifier(**how),
            ]
        case _:
            return [QuantizationModifier(**how)]


def _scheme(options: CompressedTensorsOptions) -> object:
    """The library's preset of that name, with the group size that was asked for."""
    from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme

    scheme = preset_name_to_scheme(
        "FP8_DYNAMIC" if options.scheme == "FP8" else options.scheme, ["Linear"]
    )
    if options.group and scheme.weights is not None:
        scheme.weights = scheme.weights.model_copy(update={"group_size": options.group})
    return scheme


def _mappings(model_type: str) -> tuple[object, object]:
    """Which norm scales which linears, for SmoothQuant and AWQ; None: the library's own table. It has
    nothing for StarCoder2: the norms of its blocks and the linears that read them."""
    if model_type != "starcoder2":
        return None, None
    from llmcompressor.modifiers.transform.awq import AWQMapping

    pairs = (
        ("re:.*input_layernorm$", ["re:.*q_proj$", "re:.*k_proj$", "re:.*v_proj$"]),
        ("re:.*post_attention_layernorm$", ["re:.*c_fc$"]),
    )
    return [[linears, norm] for norm, linears in pairs], [
        AWQMapping(n, linears) for n, linears in pairs
    ]


def _data(windows: list[list[int]]) -> dict[str, object]:
    """Exactly our windows, in our order."""
    from datasets import Dataset

    rows = {"input_ids": windows, "attention_mask": [[1] * len(ids) for ids in windows]}
    return {
        "dataset": Dataset.from_dict(rows),
        "num_calibration_samples": len(windows),
        "max_seq_length": max(map(len, windows)),
        "shuffle_calibration_samples": False,
    }


@contextmanager
def _no_pinning(device: torch.device) -> Iterator[None]:
    """On the CPU: AWQ pins memory for a GPU (llm-compressor 0.14), and torch refuses without one."""
    from llmcompressor.pipelines.cache import IntermediatesCache

    if device.type == "cuda":
        yield
        return
    pin = IntermediatesCache.pin_memory
    IntermediatesCache.pin_memory = lambda *_, **__: None
    try:
        yield
    finally:
        IntermediatesCache.pin_memory = pin
