"""Packing what qeval's own methods make: the options, and the checks before any job (torch-free).

For methods whose result lies on an affine grid with whole zero points and nothing beside it.
gptq_format.py does the packing.
"""

from __future__ import annotations

from typing import Literal, Protocol

from qeval import __version__
from qeval.core.artifact import ModelRef
from qeval.core.errors import UsageError, raise_all
from qeval.core.execution import Kernel
from qeval.formats.limits import check_half_precision, check_kernel, check_widths
from qeval.models.tensors import DTYPE_BYTES
from qeval.models.weights import read_tensors
from qeval.quant.base import Packages

GPTQMODEL = Packages("gptqmodel", ("gptqmodel",))  # its kernels run what is packed
GPTQ_BITS = (2, 3, 4, 8)
GPTQ_GROUPS = (-1, 16, 32, 64, 128, 256, 512, 1024)  # those of GPTQModel's kernels

Format = Literal["simulated", "gptq"]
"""simulated: float weights that carry the rounding, any bits, groups and widths, any dtype. gptq: a
checkpoint in the standard GPTQ format."""


class Exported(Protocol):
    """What the functions here read of a method's options."""

    @property
    def num_bits(self) -> int: ...
    @property
    def group_size(self) -> int: ...
    @property
    def symmetric(self) -> bool: ...
    @property
    def format(self) -> Format | None: ...
    @property
    def kernel(self) -> Kernel: ...


def check_export(options: Exported) -> None:
    """Raises ValueError (in a validator: with the key's place in the spec) for bits and groups that the
    format cannot hold."""
    if options.format != "gptq":
        if options.kernel != "auto":
            raise ValueError("kernel: no kernel runs simulated weights: leave it out, or format: gptq")
        return
    for key, known in {"num_bits": GPTQ_BITS, "group_size": GPTQ_GROUPS}.items():
        if (value := getattr(options, key)) not in known:
            choose = ", ".join(map(str, known))
            raise ValueError(f"{key}: format: gptq holds {choose}, not {value}: leave format out")
    if getattr(options, "num_blocks", None) is not None:
        raise ValueError("num_blocks: format: gptq has all blocks quantized: leave one of the two out")


def execution(options: Exported) -> dict[str, object]:
    """For ``Options.execution``: only packed weights run on a kernel."""
    return {} if options.format != "gptq" else {"kernel": options.kernel}


def preflight(method: str, options: Exported, model: ModelRef) -> None:
    """What there is to check of ``model`` before any job. Raises QevalError."""
    if options.format != "gptq":
        check_widths(method, model, options.group_size)
        return
    named = f"{method}, format: gptq"
    raise_all(
        lambda: preflight_gptq(named, options.group_size, model, "leave format out"),
        lambda: _check_dense(named, model),
    )


def _check_dense(named: str, model: ModelRef) -> None:
    if model.path.is_dir() and any(".experts." in tensor.name for tensor in read_tensors(model.path)):
        raise UsageError(
            f"{named}: {model.id} is a mixture of experts, and only dense models are packed: "
            "leave format out"
        )


def preflight_gptq(method: str, group_size: int, model: ModelRef, otherwise: str = "") -> None:
    """What a checkpoint in GPTQ's format takes.

    Raises:
        MissingExtraError: GPTQModel, whose kernels run it, is not installed.
        UsageError: a .gguf file, a dtype without kernels, or widths that the format cannot hold; with
            ``otherwise`` as the fix where no group size fits.
    """
    from qeval.core.extras import require

    # 32 integers fill num_bits whole int32, along the inputs (weights) and the outputs (zeros).
    raise_all(
        lambda: require(GPTQMODEL.extra, *GPTQMODEL.modules),
        lambda: check_half_precision(method, model),
        lambda: check_widths(
            method, model, group_size, inputs_of=32, outputs_of=32, otherwise=otherwise
        ),
    )


def packages(options: Exported) -> tuple[Packages, ...]:
    """For ``Method.packages``."""
    return (GPTQMODEL,) if options.format == "gptq" else ()


def weight_bits(options: Exported, dtype: str) -> float:
    """For ``Method.weight_bits``: simulated weights are floats."""
    return options.num_bits if options.format == "gptq" else 8.0 * DTYPE_BYTES[dtype]


def check_device(method: str, options: Exported, device: str) -> None:
    """For ``Method.check_device``."""
    if options.format == "gptq":
        check_kernel(method, options.kernel, device)


def gptq_config(options: Exported, act_order: bool = False) -> dict[str, object] | None:
    """``quantization_config`` of config.json; None where the result is simulated. ``act_order``: the
    inputs of a group need not be neighbours. gptq_format.py says why asymmetric ones are gptq_v2."""
    if options.format != "gptq":
        return None
    return {
        "quant_method": "gptq",
        "bits": options.num_bits,
        "group_size": options.group_size,
        "desc_act": act_order,
        "sym": options.symmetric,
        "checkpoint_format": "gptq" if options.symmetric else "gptq_v2",
        "lm_head": False,
        "pack_dtype": "int32",
        "meta": {"quantizer": [f"qeval:{__version__}"]},
    }
