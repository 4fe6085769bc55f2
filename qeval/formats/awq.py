"""AWQ: int32 words along the outputs, scales and zero points of each group. Runs on GPTQModel's
kernels, which doctor tries with GPTQ's layers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, final

from qeval.core.artifact import Format
from qeval.core.errors import ModelError
from qeval.formats.base import group_size, whole_number, wide
from qeval.formats.gptqmodel import OnGptqModel
from qeval.formats.tensors import PackedModule, Stored, along_outputs


@final
class Awq(OnGptqModel):
    name: ClassVar[str] = "awq"
    quant_methods: ClassVar[tuple[str, ...]] = ("awq",)
    backends: ClassVar[Mapping[str, str]] = {
        "machete": "AWQ_MACHETE",
        "marlin": "AWQ_MARLIN",
        "exllama": "AWQ_EXLLAMA_V2",
        "triton": "AWQ_GEMM_TRITON",
        "aten": "AWQ_TORCH_ATEN",
        "torch": "AWQ_TORCH",
    }

    def read(self, file: Path, config: Mapping[str, object]) -> Format:
        bits = whole_number(file, config, "bits", "w_bit", known=(4, 8))
        group = group_size(file, config, "group_size", "q_group_size")
        layouts = (config.get(key) for key in ("version", "checkpoint_format", "format"))
        layout = str(next(filter(None, layouts), "gemm")).lower()
        if layout != "gemm" or config.get("backend") == "llm-awq":
            raise ModelError(
                f"{file}: AWQ's layout {layout!r} runs on one kernel only: export it again as gemm"
            )
        symmetric = not config.get("zero_point", not config.get("sym", False))
        label = "AWQ " + wide(bits, group) + " sym" * symmetric
        details = {"layout": layout, "mixed": bool(config.get("dynamic"))}
        return self.found(label, bits, group, symmetric, details)

    def linear(self, module: PackedModule) -> Stored:
        return along_outputs(module)
