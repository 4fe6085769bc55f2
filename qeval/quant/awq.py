"""`awq`: AWQ (arXiv 2306.00978) by GPTQModel, or AutoAWQ in a separate environment; packed, 4 bits.
``backend: laboratory`` is qeval's own (below): 2 to 8 bits, any group size, simulated; with
``format: gptq`` packed in GPTQ's format, which holds the same grids.

The other backends' checkpoint is in AutoAWQ's GEMM format, which vLLM, GPTQModel and transformers load;
of StarCoder2 transformers loads AutoAWQ's only (it wants the scales of an activation, which GPTQModel
has none of).
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, ClassVar, Literal, final

from pydantic import Field, model_validator

from qeval.core.artifact import Artifact, ModelRef
from qeval.core.errors import raise_all
from qeval.core.execution import Kernel
from qeval.core.options import GroupSize, Options
from qeval.data.calibration import CalibrationOptions
from qeval.formats.limits import check_half_precision, check_widths
from qeval.quant.base import BuildContext
from qeval.quant.laboratory.base import (
    CalibratedMethod,
    CalibratedOptions,
    PackableOptions,
    gptq_config,
)
from qeval.quant.laboratory.method import quantize as quantize_with

if TYPE_CHECKING:
    from gptqmodel import QuantizeConfig

_BY = {"gptqmodel": "", "auto-awq": " (AutoAWQ)", "laboratory": " (laboratory)"}
GROUPS = (-1, 16, 32, 64, 128)


class AwqCalibration(CalibrationOptions):
    seq_len: int = Field(default=512, ge=2)  # AutoAWQ's 128 x 512


class AwqOptions(CalibratedOptions, PackableOptions):
    """Other bits than 4, groups of any size and ``format`` are of backend laboratory."""

    group_size: GroupSize = 128
    calibration: AwqCalibration = AwqCalibration()
    backend: Literal["gptqmodel", "auto-awq", "laboratory"] = "gptqmodel"

    @model_validator(mode="after")
    def _fits_the_backend(self) -> AwqOptions:
        if self.backend == "laboratory":
            return self
        if self.format is not None:
            raise ValueError(f"format: backend {self.backend} always packs; leave it out")
        if self.num_bits != 4:
            raise ValueError(
                f"num_bits {self.num_bits}: packed AWQ has 4 bits; others with backend: laboratory"
            )
        if self.group_size not in GROUPS:
            raise ValueError(
                f"group_size {self.group_size}: choose one of {', '.join(map(str, GROUPS))}"
            )
        if self.backend == "auto-awq" and self.symmetric:
            raise ValueError("symmetric: AutoAWQ's GEMM format is asymmetric; leave it out")
        return self

    @property
    def packed_on(self) -> Kernel | None:
        return super().packed_on if self.backend == "laboratory" else self.kernel


@final
class Awq(CalibratedMethod[AwqOptions]):
    name: ClassVar[str] = "awq"
    version: ClassVar[int] = 1
    Options: ClassVar[type[Options]] = AwqOptions
    scalar: ClassVar[str | None] = "num_bits"

    def label(self, options: AwqOptions) -> str:
        grid = " sym" if options.symmetric else ""
        packed = " packed" if options.format == "gptq" else ""
        return f"AWQ {options.bits_label()}{grid}{_BY[options.backend]}{packed}"

    def environment(self, options: AwqOptions) -> str | None:
        return "auto-awq" if options.backend == "auto-awq" else None

    def preflight(self, options: AwqOptions, model: ModelRef) -> None:
        if options.backend == "laboratory":
            super().preflight(options, model)
            return
        raise_all(
            lambda: self.check_packages(options),  # both backends' checkpoints run on its kernels
            lambda: check_half_precision("awq", model),
            lambda: check_widths("awq", model, options.group_size, outputs_of=8),  # 8 to an int32
        )

    def build(self, options: AwqOptions, context: BuildContext) -> Artifact:
        """Raises BuildError where the library refuses the model."""
        if options.backend == "auto-awq":
            from qeval.quant.libraries.auto_awq import build

            return build(options, context)
        if options.backend == "laboratory":
            return build_in_laboratory(options, context)
        from qeval.quant.libraries.gptqmodel import quantize

        def config(library: ModuleType) -> QuantizeConfig:
            return library.quantization.AWQConfig(
                bits=options.num_bits,
                group_size=options.group_size,
                sym=options.symmetric,
                offload_to_disk=False,
            )

        return quantize(config, options.calibration, context)


def build_in_laboratory(options: AwqOptions, context: BuildContext) -> Artifact:
    """Raises BuildError for an unknown architecture and for activations that are not finite."""
    from functools import partial

    from qeval.quant.laboratory.solvers.base import GridRules
    from qeval.quant.laboratory.solvers.clipping import clipped_rtn
    from qeval.quant.laboratory.transforms.awq import AwqScales

    rules = GridRules(options.num_bits, options.group_size, options.symmetric)
    return quantize_with(
        context,
        partial(clipped_rtn, rules=rules),
        options.calibration,
        num_bits=options.num_bits,
        true_sequential=False,
        gptq=gptq_config(options),
        transform=lambda *_: AwqScales(rules),
    )
