"""GPTQ: int32 words along the inputs, scales and zero points of each group, and perhaps g_idx, the
group of each input. Runs on GPTQModel's kernels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from qeval.core.artifact import Format
from qeval.core.errors import ModelError
from qeval.formats.base import (
    HF,
    Candidate,
    FloatLayer,
    Library,
    Trial,
    group_size,
    whole_number,
    wide,
)
from qeval.formats.gptqmodel import OnGptqModel, import_gptqmodel
from qeval.formats.limits import KERNELS
from qeval.formats.tensors import PackedModule, Stored, along_inputs

if TYPE_CHECKING:
    import torch

_LAYOUTS = ("gptq", "gptq_v2")
_COMPILED = ("marlin", "exllama")  # kernels that are compiled for minutes on first use


@final
class Gptq(OnGptqModel):
    name: ClassVar[str] = "gptq"
    quant_methods: ClassVar[tuple[str, ...]] = ("gptq",)
    unnamed: ClassVar[bool] = True  # AutoGPTQ wrote no name
    backends: ClassVar[Mapping[str, str]] = {
        "machete": "GPTQ_MACHETE",
        "marlin": "GPTQ_MARLIN",
        "exllama": "GPTQ_EXLLAMA_V2",
        "triton": "GPTQ_TRITON",
        "aten": "GPTQ_TORCH_ATEN",
        "torch": "GPTQ_TORCH",
    }
    library: ClassVar[Library | None] = Library(
        "gptqmodel", "gptqmodel", "gptqmodel", (*HF, "gptqmodel")
    )

    def read(self, file: Path, config: Mapping[str, object]) -> Format:
        bits = whole_number(file, config, "bits", known=(2, 3, 4, 8))
        group = group_size(file, config, "group_size")
        layout = config.get("checkpoint_format") or config.get("format") or "gptq"
        if layout not in _LAYOUTS:
            raise ModelError(
                f"{file}: checkpoint_format {layout!r} runs on one kernel only: export it again as "
                f"gptq (known: {', '.join(_LAYOUTS)})"
            )
        order, symmetric = bool(config.get("desc_act")), bool(config.get("sym", True))
        label = "GPTQ " + wide(bits, group) + " act-order" * order + " asym" * (not symmetric)
        details = {
            "checkpoint_format": layout,
            "act_order": order,
            "lm_head": bool(config.get("lm_head")),
            "mixed": bool(config.get("dynamic")),
        }
        return self.found(label, bits, group, symmetric, details)

    def linear(self, module: PackedModule) -> Stored:
        return along_inputs(module)

    def trial(self, source: FloatLayer) -> Trial:
        """The kernels that load a 4-bit layer here, each by name."""
        library = import_gptqmodel(1, source.device)
        order = KERNELS[source.device.type]

        def candidate(kernel: str) -> Candidate:
            backend = getattr(library.BACKEND, self.backends[kernel])
            return Candidate(kernel, 4, lambda: _layer(backend, source))

        left = [kernel for kernel in order if kernel in _COMPILED]
        note = f"not tried, compiled for minutes on first use: {', '.join(left)}"
        tried = [candidate(kernel) for kernel in order if kernel not in _COMPILED]
        return Trial(tried, [note] if left else [], {"not_tried": left})


def _layer(backend: object, source: FloatLayer) -> torch.nn.Module:
    import torch
    from gptqmodel.models._const import DEVICE
    from gptqmodel.quantization import FORMAT, METHOD
    from gptqmodel.utils.importer import select_quant_linear

    from qeval.formats.affine import fit_grid

    n_out, n_in = source.weight.shape
    scheme = {"bits": 4, "group_size": source.group_size, "desc_act": False, "sym": False}
    kind = select_quant_linear(
        **scheme,
        device=DEVICE(source.device.type),
        backend=backend,
        format=FORMAT.GPTQ,
        quant_method=METHOD.GPTQ,
        pack_dtype=torch.int32,
    )
    layer = kind(**scheme, in_features=n_in, out_features=n_out, bias=False, pack_dtype=torch.int32)
    grid = fit_grid(source.weight, 4, source.group_size, symmetric=False)
    # Writes zero points as they are (format 2), which every kernel here takes. Its hf_pack believes
    # that they were less one (format 1), and adds one where format 2 is asked for.
    layer.pack_original(source.linear().float(), grid.scale, grid.zero_point)
    layer.scales = layer.scales.to(source.dtype)
    layer = layer.to(source.device).eval()
    layer.post_init()
    made: torch.nn.Module = layer
    return made
