"""What the methods share that qeval runs itself: how their options say what becomes of the result, and
the answers that follow from it (torch-free).

The result is float weights that carry the rounding (simulated), or packed in the GPTQ format where it
lies on an affine grid with whole zero points and nothing beside it; gptq_format.py does the packing.
"""

from __future__ import annotations

from typing import ClassVar, Generic, Literal, Self, TypeVar

from pydantic import Field, model_validator

from qeval.core import __version__
from qeval.core.artifact import ModelRef
from qeval.core.errors import UsageError, raise_all
from qeval.core.execution import Kernel
from qeval.core.options import GroupSize, Options
from qeval.data.calibration import CalibrationOptions
from qeval.formats.limits import check_half_precision, check_kernel, check_widths
from qeval.models.tensors import DTYPE_BYTES
from qeval.models.weights import read_tensors
from qeval.quant.base import Method, Packages

GPTQMODEL = Packages("gptqmodel", ("gptqmodel",))  # its kernels run what is packed
GPTQ_BITS = (2, 3, 4, 8)
GPTQ_GROUPS = (-1, 16, 32, 64, 128, 256, 512, 1024)  # those of GPTQModel's kernels

Format = Literal["simulated", "gptq"]
"""simulated: float weights that carry the rounding, any bits, groups and widths, any dtype. gptq: a
checkpoint in the standard GPTQ format."""


class GridOptions(Options):
    """Options of a method whose result lies on an affine grid."""

    num_bits: int = Field(default=4, ge=2, le=8)
    group_size: GroupSize = -1
    symmetric: bool = False

    @property
    def packed_on(self) -> Kernel | None:
        """The kernel that is to run a packed result; None: the result is simulated."""
        return None

    def execution(self) -> dict[str, object]:
        return {} if self.packed_on is None else {"kernel": self.packed_on}

    def bits_label(self) -> str:
        """``W4A16g128``, ``W3A16``."""
        return f"W{self.num_bits}A16" + ("" if self.group_size == -1 else f"g{self.group_size}")


class PackableOptions(GridOptions):
    """Those of a method that packs its result where it is asked to."""

    format: Format | None = None
    kernel: Kernel = "auto"

    @property
    def packed_on(self) -> Kernel | None:
        return self.kernel if self.format == "gptq" else None

    @model_validator(mode="after")
    def _can_be_packed(self) -> Self:
        """Refuses bits and groups that the format cannot hold, and a kernel that would run nothing."""
        if self.packed_on is None and self.kernel != "auto":
            raise ValueError("kernel: no kernel runs simulated weights: leave it out, or format: gptq")
        if self.format != "gptq":
            return self
        for key, known in {"num_bits": GPTQ_BITS, "group_size": GPTQ_GROUPS}.items():
            if (value := getattr(self, key)) not in known:
                choose = ", ".join(map(str, known))
                raise ValueError(f"{key}: format: gptq holds {choose}, not {value}: leave format out")
        if getattr(self, "num_blocks", None) is not None:
            raise ValueError(
                "num_blocks: format: gptq has all blocks quantized: leave one of the two out"
            )
        return self


class CalibratedOptions(GridOptions):
    """Those of a method that reads a calibration text."""

    calibration: CalibrationOptions = CalibrationOptions()


GridT = TypeVar("GridT", bound=GridOptions, contravariant=True)
CalibratedT = TypeVar("CalibratedT", bound=CalibratedOptions, contravariant=True)


class LaboratoryMethod(Method[GridT], Generic[GridT]):
    """A method of the laboratory, or one that another library may do as well."""

    name: ClassVar[str]  # in errors
    engine: ClassVar[str | None] = "hf"

    def simulates(self, options: GridT) -> bool:
        return options.packed_on is None

    def weight_bits(self, options: GridT, dtype: str) -> float:
        return 8.0 * DTYPE_BYTES[dtype] if options.packed_on is None else options.num_bits

    def packages(self, options: GridT) -> tuple[Packages, ...]:
        return () if options.packed_on is None else (GPTQMODEL,)

    def check_device(self, options: GridT, model: ModelRef, device: str) -> None:
        """Raises UsageError for a kernel that the device does not have."""
        if options.packed_on is not None:
            check_kernel(self.name, options.packed_on, device)

    def preflight(self, options: GridT, model: ModelRef) -> None:
        """Raises UsageError for a .gguf file and for widths that do not fit, MissingExtraError for
        GPTQModel."""
        if options.packed_on is None:
            check_widths(self.name, model, options.group_size)
            return
        named = f"{self.name}, format: gptq"
        raise_all(
            lambda: preflight_gptq(named, options.group_size, model, "leave format out"),
            lambda: _check_dense(named, model),
        )


class CalibratedMethod(LaboratoryMethod[CalibratedT], Generic[CalibratedT]):
    """One that reads a calibration text."""

    def reads(self, options: CalibratedT) -> CalibrationOptions:
        return options.calibration


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


def gptq_config(options: PackableOptions, act_order: bool = False) -> dict[str, object] | None:
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
