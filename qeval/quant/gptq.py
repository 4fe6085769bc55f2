"""`gptq`: GPTQ (arXiv 2210.17323) by GPTQModel, or by AutoGPTQ in a separate environment; packed.

The checkpoint is in the standard GPTQ format: qweight, qzeros, scales and g_idx for every linear of the
decoder blocks, which transformers, vLLM and GPTQModel load. Calibration windows are the same for both
backends, so that their rows differ by the library alone. ``backend: laboratory`` is qeval's own
(the end of this file), simulated unless ``format: gptq``.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, ClassVar, Literal, final

from pydantic import Field, model_validator

from qeval.core.artifact import Artifact, ModelRef
from qeval.core.errors import UsageError
from qeval.core.execution import Kernel
from qeval.core.options import GroupSize, Options
from qeval.quant.base import BuildContext
from qeval.quant.laboratory.base import (
    GPTQ_BITS,
    GPTQ_GROUPS,
    CalibratedMethod,
    PackableOptions,
    gptq_config,
    preflight_gptq,
)
from qeval.quant.laboratory.method import LaboratoryOptions
from qeval.quant.laboratory.method import build as build_with

if TYPE_CHECKING:
    from gptqmodel import QuantizeConfig

    from qeval.quant.laboratory.driver import Solve

_BY = {"gptqmodel": "", "auto-gptq": " (AutoGPTQ)", "laboratory": " (laboratory)"}


class GptqOptions(LaboratoryOptions, PackableOptions):
    """5, 6 and 7 bits, ``num_blocks`` and ``format`` are of backend laboratory: the others always pack
    the whole model."""

    group_size: GroupSize = 128
    act_order: bool = False  # columns by descending diagonal of H
    static_groups: bool = False  # grids found before anything is rounded: groups stay in order
    symmetric: bool = True
    percdamp: float = Field(default=0.01, gt=0, lt=1)  # of the mean diagonal of H
    backend: Literal["gptqmodel", "auto-gptq", "laboratory"] = "gptqmodel"

    @model_validator(mode="after")
    def _known(self) -> GptqOptions:
        if self.backend == "laboratory":
            return self
        for key, known in {"num_bits": GPTQ_BITS, "group_size": GPTQ_GROUPS}.items():
            if (value := getattr(self, key)) not in known:
                choose = ", ".join(map(str, known))
                raise ValueError(f"{key}: backend {self.backend} packs {choose}, not {value}")
        for key in ("format", "num_blocks"):
            if getattr(self, key) is not None:
                why = f"{key}: backend {self.backend} always packs the whole model"
                raise ValueError(f"{why}; leave it out, or backend: laboratory")
        if self.backend == "auto-gptq" and not self.symmetric:  # docs/environments.md
            raise ValueError("symmetric: AutoGPTQ stores asymmetric zero points wrong; leave it out")
        return self

    @property
    def packed_on(self) -> Kernel | None:
        return super().packed_on if self.backend == "laboratory" else self.kernel


@final
class Gptq(CalibratedMethod[GptqOptions]):
    name: ClassVar[str] = "gptq"
    version: ClassVar[int] = 2  # 2: symmetric grids as GPTQ's authors have them
    Options: ClassVar[type[Options]] = GptqOptions
    scalar: ClassVar[str | None] = "num_bits"

    def label(self, options: GptqOptions) -> str:
        order = " act-order" if options.act_order else ""
        order += " static groups" if options.static_groups else ""
        grid = "" if options.symmetric else " asym"
        by = _BY[options.backend] + (" packed" if options.format == "gptq" else "")
        return f"GPTQ {options.bits_label()}{order}{grid}{options.blocks_label()}{by}"

    def environment(self, options: GptqOptions) -> str | None:
        return "auto-gptq" if options.backend == "auto-gptq" else None

    def check_device(self, options: GptqOptions, model: ModelRef, device: str) -> None:
        if options.backend == "auto-gptq" and device != "cuda":
            raise UsageError("gptq: AutoGPTQ quantizes on CUDA only: use backend: gptqmodel")
        super().check_device(options, model, device)

    def preflight(self, options: GptqOptions, model: ModelRef) -> None:
        if options.backend == "laboratory":
            super().preflight(options, model)
        else:
            preflight_gptq("gptq", options.group_size, model)

    def build(self, options: GptqOptions, context: BuildContext) -> Artifact:
        """Raises BuildError where the library refuses the model."""
        if options.backend == "auto-gptq":
            from qeval.quant.libraries.auto_gptq import build

            return build(options, context)
        if options.backend == "laboratory":
            return build_in_laboratory(options, context)
        from qeval.quant.libraries.gptqmodel import quantize

        def config(library: ModuleType) -> QuantizeConfig:
            return library.GPTQConfig(
                bits=options.num_bits,
                group_size=options.group_size,
                desc_act=options.act_order,
                static_groups=options.static_groups,
                act_group_aware=False,  # GPTQModel's own order; the paper and AutoGPTQ have none
                sym=options.symmetric,
                damp_percent=options.percdamp,
                true_sequential=options.true_sequential,
                offload_to_disk=False,
            )

        return quantize(config, options.calibration, context)


def build_in_laboratory(options: GptqOptions, context: BuildContext) -> Artifact:
    """Raises BuildError for an unknown architecture and for activations that are not finite."""
    packed = gptq_config(options, options.act_order and not options.static_groups)
    return build_with(context, solver(options), options, gptq=packed)


def solver(options: GptqOptions) -> Solve:
    """What the options ask for, as a function of a layer's weight and Hessian."""
    from functools import partial

    from qeval.quant.laboratory.solvers.base import GridRules
    from qeval.quant.laboratory.solvers.gptq import gptq

    rules = GridRules(options.num_bits, options.group_size, options.symmetric)
    return partial(
        gptq,
        rules=rules,
        percdamp=options.percdamp,
        act_order=options.act_order,
        static_groups=options.static_groups,
    )
