"""`gptq`: GPTQ (arXiv 2210.17323) by GPTQModel, or by AutoGPTQ in an environment of its own; packed.

The checkpoint is in the standard GPTQ format: qweight, qzeros, scales and g_idx for every linear of the
decoder blocks, which transformers, vLLM and GPTQModel load. Calibration windows are the same for both
backends, so that their rows differ by the library alone. ``backend: laboratory`` is qeval's own
(lab_gptq.py), simulated.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from qeval.calibration import CalibrationOptions
from qeval.quant.base import Artifact, BuildContext, Method, ModelRef, Options
from qeval.quant.packing import Kernel, check_half_precision, check_widths

_BY = {"gptqmodel": "", "auto-gptq": " (AutoGPTQ)", "laboratory": " (laboratory)"}
GROUPS = (-1, 16, 32, 64, 128, 256, 512, 1024)


class GptqOptions(Options):
    num_bits: Literal[2, 3, 4, 8] = 4
    group_size: int = 128  # consecutive inputs that share a scale; -1: one scale per output channel
    act_order: bool = False  # columns by descending diagonal of H
    symmetric: bool = True
    percdamp: float = Field(default=0.01, gt=0, lt=1)  # of the mean diagonal of H
    true_sequential: bool = True  # q, k, v; then o; then gate, up; then down
    calibration: CalibrationOptions = CalibrationOptions()
    backend: Literal["gptqmodel", "auto-gptq", "laboratory"] = "gptqmodel"
    kernel: Kernel = "auto"

    @model_validator(mode="after")
    def _known_group(self) -> GptqOptions:
        if self.group_size not in GROUPS:
            raise ValueError(
                f"group_size {self.group_size}: choose one of {', '.join(map(str, GROUPS))}"
            )
        if self.backend == "auto-gptq" and not self.symmetric:  # docs/environments.md
            raise ValueError("symmetric: AutoGPTQ stores asymmetric zero points wrong; leave it out")
        if self.backend == "laboratory" and self.kernel != "auto":
            raise ValueError("kernel: backend laboratory is simulated, no kernel runs it; leave it out")
        return self

    def execution(self) -> dict[str, Any]:
        return {} if self.backend == "laboratory" else {"kernel": self.kernel}


class Gptq(Method):
    version: ClassVar[int] = 2  # 2: symmetric grids as GPTQ's authors have them
    Options: ClassVar[type[Options]] = GptqOptions
    scalar: ClassVar[str | None] = "num_bits"
    in_place: ClassVar[bool] = False
    engine: ClassVar[str | None] = "hf"

    def label(self, options: GptqOptions) -> str:
        group = "" if options.group_size == -1 else f"g{options.group_size}"
        order = " act-order" if options.act_order else ""
        grid = "" if options.symmetric else " asym"
        by = _BY[options.backend]
        return f"GPTQ W{options.num_bits}A16{group}{order}{grid}{by}"

    def environment(self, options: GptqOptions) -> str | None:
        return "auto-gptq" if options.backend == "auto-gptq" else None

    def preflight(self, options: GptqOptions, model: ModelRef) -> None:
        from qeval.extras import require

        if options.backend == "laboratory":
            check_widths("gptq", model, options.group_size)
            return
        require("gptqmodel", "gptqmodel")  # both backends' checkpoints run on its kernels
        check_half_precision("gptq", model)
        # 32 integers fill num_bits whole int32, along the inputs (weights) and the outputs (zeros).
        check_widths("gptq", model, options.group_size, inputs_of=32, outputs_of=32)

    def build(self, options: GptqOptions, context: BuildContext) -> Artifact:
        """Raises BuildError where the library refuses the model."""
        if options.backend == "auto-gptq":
            from qeval.quant.auto_gptq import build

            return build(options, context)
        if options.backend == "laboratory":
            from qeval.quant.lab_gptq import build as build_in_laboratory

            return build_in_laboratory(options, context)
        from qeval.quant.gptqmodel_build import quantize

        def config(library: Any) -> Any:
            return library.GPTQConfig(
                bits=options.num_bits,
                group_size=options.group_size,
                desc_act=options.act_order,
                act_group_aware=False,  # GPTQModel's own order; the paper and AutoGPTQ have none
                sym=options.symmetric,
                damp_percent=options.percdamp,
                true_sequential=options.true_sequential,
                offload_to_disk=False,
            )

        return quantize(config, options.calibration, context)
