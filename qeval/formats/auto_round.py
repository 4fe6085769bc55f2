"""AutoRound's own folders: int32 words in GPTQ's or AWQ's layout, on the package's kernels."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, TypedDict, cast, final

from qeval.core.artifact import Format
from qeval.core.errors import ModelError
from qeval.formats.base import (
    HF,
    Candidate,
    FloatLayer,
    Library,
    PackedFormat,
    Trial,
    group_size,
    whole_number,
    wide,
)
from qeval.formats.tensors import PackedModule, Stored, along_inputs, along_outputs

if TYPE_CHECKING:
    import torch

_LAYOUTS = ("gptq", "auto_gptq", "awq", "auto_awq")


class Details(TypedDict):
    packing: str
    layout: Literal["gptq", "awq"]
    mixed: bool


@final
class AutoRound(PackedFormat):
    name: ClassVar[str] = "auto-round"
    extra: ClassVar[str] = "auto-round"
    modules: ClassVar[tuple[str, ...]] = ("auto_round",)
    quant_methods: ClassVar[tuple[str, ...]] = ("auto-round", "intel/auto-round")  # before 0.3
    suffixes: ClassVar[tuple[str, ...]] = (".qweight",)
    unmistakable: ClassVar[tuple[str, ...]] = (".qweight",)
    library: ClassVar[Library | None] = Library(
        "auto-round", "auto-round", "auto-round", (*HF, "auto_round")
    )

    def read(self, file: Path, config: Mapping[str, object]) -> Format:
        bits = whole_number(file, config, "bits", known=range(2, 9))
        group = group_size(file, config, "group_size")
        packing = str(config.get("packing_format", "auto_round:gptq"))
        layout = packing.rpartition(":")[2]
        if layout not in _LAYOUTS or config.get("data_type", "int") != "int":
            raise ModelError(
                f"{file}: packing_format {packing!r} of data_type {config.get('data_type')!r}: "
                f"{', '.join(f'auto_round:{x}' for x in _LAYOUTS)} of int are known"
            )
        symmetric = bool(config.get("sym", True))
        label = "AutoRound " + wide(bits, group) + " asym" * (not symmetric)
        details: Details = {
            "packing": packing,
            "layout": "awq" if layout.endswith("awq") else "gptq",
            "mixed": bool(config.get("extra_config")),
        }
        return self.found(label, bits, group, symmetric, details)

    def linear(self, module: PackedModule) -> Stored:
        details = cast(Details, module.format.details)
        return along_outputs(module) if details["layout"] == "awq" else along_inputs(module)

    def trial(self, source: FloatLayer) -> Trial:
        """The package's own classes; loading a model may prefer GPTQModel's, where that is there."""
        importlib.import_module("auto_round")
        kernels = ("tritonv2", "torch") if source.device.type == "cuda" else ("torch",)

        def candidate(kernel: str) -> Candidate:
            return Candidate(kernel, 4, lambda: _layer(kernel, source))

        return Trial([candidate(kernel) for kernel in kernels])


def _layer(kernel: str, source: FloatLayer) -> torch.nn.Module:
    from auto_round.inference.backend import dynamic_import_inference_linear

    from qeval.formats.affine import fit_grid

    n_out, n_in = source.weight.shape
    scheme = {"bits": 4, "group_size": source.group_size, "sym": False}
    kind = dynamic_import_inference_linear(f"auto_round:{kernel}", scheme)
    layer = kind(4, source.group_size, n_in, n_out, False)
    layer.device = "cpu"  # where it packs, as its export sets it
    grid = fit_grid(source.weight, 4, source.group_size, symmetric=False)
    layer.pack(source.linear(), grid.scale, grid.zero_point, None, "cpu")
    layer.scales = layer.scales.to(source.dtype)
    layer = layer.to(source.device).eval()
    layer.post_init()
    made: torch.nn.Module = layer
    return made
