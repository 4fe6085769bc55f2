"""What packed integer formats (GPTQ, AWQ) can hold, and the kernels a spec may name (torch-free)."""

from __future__ import annotations

from typing import Literal

from qeval.errors import UsageError
from qeval.quant.base import ModelRef
from qeval.weights import linear_shapes

Kernel = Literal["auto", "marlin", "exllama", "triton", "aten", "torch"]
"""auto: the first that takes the weights: on CUDA marlin, exllama, triton, torch, on the CPU aten, torch.
aten is torch's own int4 product on the CPU; torch unpacks to floats for every product."""

_NAMED = 4  # layers in a message
_ROUTERS = (".gate", ".router", ".shared_expert_gate")  # of a mixture of experts: never quantized


def check_half_precision(method: str, model: ModelRef) -> None:
    """Raises UsageError for float32, which no kernel of packed 4-bit weights computes in."""
    if model.dtype == "float32":
        raise UsageError(
            f"{method}: its kernels compute in bfloat16 or float16, not float32 ({model.id}): "
            "set dtype: bfloat16 in the spec, or on the model"
        )


def check_widths(
    method: str, model: ModelRef, group_size: int, *, inputs_of: int, outputs_of: int
) -> None:
    """Raises UsageError that names every linear whose widths the format cannot hold."""
    if model.path.is_file():
        raise UsageError(f"{method}: {model.id} is a .gguf file: it needs the float model's folder")
    wanted = inputs_of if group_size == -1 else group_size
    wrong = {
        name: shape
        for name, shape in linear_shapes(model.path).items()
        if not name.endswith(_ROUTERS)
        and (shape[1] % wanted or shape[1] % inputs_of or shape[0] % outputs_of)
    }
    if not wrong:
        return
    listed = [f"{name} [{out}, {into}]" for name, (out, into) in wrong.items()]
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    fits = [g for g in (128, 64, 32, 16) if all(i % g == 0 for _, i in wrong.values())]
    outputs_fit = all(o % outputs_of == 0 for o, _ in wrong.values())
    fix = f"group_size {fits[0]} or -1 fits" if fits and outputs_fit else "this format cannot hold them"
    raise UsageError(
        f"{method}: group_size {group_size} needs inputs that are multiples of {wanted} and outputs of "
        f"{outputs_of}; {len(wrong)} linears are not: {', '.join(listed[:_NAMED])}{more}: {fix}"
    )
