"""`torchao`: PyTorch's own quantized tensors, through transformers' TorchAoConfig; no calibration.

``wo``: weights only. ``dyn``: activations too, per token when it runs. int8 and fp8 keep one scale per
output channel (int8wo: or per group), int4wo one scale and zero per group, in tinygemm's packing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, final

from pydantic import Field, model_validator

from qeval.core.artifact import Artifact, ModelRef
from qeval.core.errors import BuildError, QevalError, UsageError, raise_all
from qeval.core.options import Options
from qeval.quant.base import BuildContext, Method, Packages

if TYPE_CHECKING:
    import torch

_CAPABILITIES = {"int4wo": (8, 0), "fp8dyn": (8, 9)}  # the least, of schemes that need a CUDA GPU
_INSTEAD = {"int4wo": "int8wo", "fp8dyn": "fp8wo"}  # what runs everywhere
_INT4_GROUPS = (32, 64, 128, 256)  # what tinygemm's kernel takes


class TorchAoOptions(Options):
    scheme: Literal["int8wo", "int4wo", "int8dyn", "fp8wo", "fp8dyn"] = "int8wo"
    group_size: int | None = Field(  # inputs that share a scale; None: int4wo 128, int8wo per channel
        default=None, ge=1
    )

    @model_validator(mode="after")
    def _consistent(self) -> TorchAoOptions:
        if self.group_size is None:
            return self
        if self.scheme not in ("int8wo", "int4wo"):
            raise ValueError(f"{self.scheme} has one scale per output channel: drop group_size")
        if self.scheme == "int4wo" and self.group_size not in _INT4_GROUPS:
            raise ValueError(f"group_size of int4wo: one of {', '.join(map(str, _INT4_GROUPS))}")
        return self

    @property
    def group(self) -> int | None:
        return 128 if self.scheme == "int4wo" and self.group_size is None else self.group_size

    def identity(self) -> dict[str, object]:
        return {"scheme": self.scheme, "group_size": self.group}


@final
class TorchAo(Method[TorchAoOptions]):
    version: ClassVar[int] = 2  # 2: routers stay floats
    Options: ClassVar[type[Options]] = TorchAoOptions
    scalar: ClassVar[str | None] = "scheme"
    engine: ClassVar[str | None] = "hf"

    def label(self, options: TorchAoOptions) -> str:
        return f"torchao {options.scheme}" + (f" g{options.group}" if options.group else "")

    def rounds_activations(self, options: TorchAoOptions) -> bool:
        return options.scheme.endswith("dyn")

    def packages(self, options: TorchAoOptions) -> tuple[Packages, ...]:
        return (Packages("torchao", ("torch", "transformers", "accelerate", "torchao")),)

    def simulates(self, options: TorchAoOptions) -> bool:
        return False

    def weight_bits(self, options: TorchAoOptions, dtype: str) -> float:
        return 4 if options.scheme == "int4wo" else 8

    def check_device(self, options: TorchAoOptions, model: ModelRef, device: str) -> None:
        if device == "cpu":
            refuse_cpu(options.scheme, UsageError)

    def preflight(self, options: TorchAoOptions, model: ModelRef) -> None:
        raise_all(
            lambda: self.check_packages(options),
            lambda: _check_dtype(options, model),
            lambda: _check_shapes(options, model),
        )

    def build(self, options: TorchAoOptions, context: BuildContext) -> Artifact:
        """Raises BuildError where the device has no kernel of the scheme."""
        from transformers import TorchAoConfig

        from qeval.models.linears import device_of
        from qeval.models.loading import load_model
        from qeval.quant.libraries.finish import finish, left_alone

        device = device_of(context.device)
        check_device(options.scheme, device)
        model = load_model(
            context.model.path,
            context.model.dtype,
            device,
            context.model.trust_remote_code,
            quantization_config=TorchAoConfig(
                _configuration(options), modules_to_not_convert=left_alone(context.model)
            ),
        )
        folder = context.out / "model"
        model.save_pretrained(folder, max_shard_size="4GB")
        return finish(folder, context, "torchao")


def _check_dtype(options: TorchAoOptions, model: ModelRef) -> None:
    if options.scheme == "int4wo" and model.dtype != "bfloat16":
        raise UsageError(
            f"torchao int4wo: its kernel computes in bfloat16, not {model.dtype} ({model.id}): "
            "set dtype: bfloat16"
        )


def _check_shapes(options: TorchAoOptions, model: ModelRef) -> None:
    from qeval.formats.limits import check_no_conv1d, check_widths, refuse_shapes
    from qeval.models.weights import linear_shapes

    check_no_conv1d("torchao", model)
    if options.group:
        check_widths(f"torchao {options.scheme}", model, options.group)
    if options.scheme == "fp8dyn":
        shapes = linear_shapes(model.path).items()
        wrong = {name: shape for name, shape in shapes if shape[0] % 16 or shape[1] % 16}
        refuse_shapes("torchao fp8dyn", wrong, "widths that are multiples of 16", "use fp8wo")


def refuse_cpu(scheme: str, error: type[QevalError]) -> None:
    """Raises ``error`` for a scheme that runs on CUDA only."""
    if scheme in _CAPABILITIES:
        raise error(f"{_wanted(scheme)}, the CPU has no kernel of it: use scheme: {_INSTEAD[scheme]}")


def check_device(scheme: str, device: torch.device) -> None:
    """Raises BuildError where ``device`` (a torch.device) has no kernel of the scheme, with its compute
    capability; before the model is loaded."""
    import torch

    if device.type != "cuda":
        refuse_cpu(scheme, BuildError)
    elif scheme in _CAPABILITIES:
        found = torch.cuda.get_device_capability(device)
        if found < _CAPABILITIES[scheme]:
            has = f"this one has {found[0]}.{found[1]}"
            raise BuildError(f"{_wanted(scheme)}, {has}: use scheme: {_INSTEAD[scheme]}")


def _wanted(scheme: str) -> str:
    major, minor = _CAPABILITIES[scheme]
    return f"torchao {scheme}: needs a CUDA GPU of compute capability {major}.{minor}"


def _configuration(options: TorchAoOptions) -> object:
    import torchao.quantization as q

    match options.scheme:
        case "int8wo":
            return q.Int8WeightOnlyConfig(
                granularity=q.PerGroup(options.group) if options.group else q.PerRow()
            )
        case "int4wo":
            return q.Int4WeightOnlyConfig(
                group_size=options.group, int4_packing_format="tile_packed_to_4d"
            )
        case "int8dyn":
            return q.Int8DynamicActivationInt8WeightConfig()
        case "fp8wo":
            return q.Float8WeightOnlyConfig()
        case _:
            return q.Float8DynamicActivationFloat8WeightConfig(granularity=q.PerRow())
