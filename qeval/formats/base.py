"""What qeval knows of a packed format, one file a format: how its files are recognised, what they take
to store, what it needs to run, how it is loaded, and what `qeval doctor` tries of it.

FORMATS is the registry. recognise.py, describe.py, load.py and the doctor walk it and name no format.
A format's module is imported without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from qeval.core.artifact import Artifact, Format, LayerReport, ModelRef
from qeval.core.errors import ModelError
from qeval.core.registry import Registry
from qeval.core.settings import EngineSettings
from qeval.formats.tensors import PackedModule, Stored

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

HF = ("torch", "transformers", "accelerate")
"""What every format runs on."""


class PackedFormat(Protocol):
    """One format of packed folders. It is used as an instance without state."""

    name: ClassVar[str]  # its registry name, which artifacts and messages have
    extra: ClassVar[str]  # the extra of qeval whose packages run it
    modules: ClassVar[tuple[str, ...]]  # of these packages, what must be importable

    # How a folder says that it is in this format: one of these is the ``quant_method`` of its
    # quantization_config, or this file lies in it.
    quant_methods: ClassVar[tuple[str, ...]] = ()
    file: ClassVar[str | None] = None
    unnamed: ClassVar[bool] = False  # meant by a quantize_config.json that has no quant_method

    # Endings of tensors' names. One such tensor makes its module a quantized one.
    suffixes: ClassVar[tuple[str, ...]]
    unmistakable: ClassVar[tuple[str, ...]] = ()  # those of them that no float model has

    keeps_tensors: ClassVar[tuple[str, ...]] = ()  # packages whose objects hold tensors of its layers
    takes_kernel: ClassVar[bool] = False  # a spec may name its kernel (core.execution.Kernel)
    library: ClassVar[Library | None] = None  # for `qeval doctor`, which tries what ``trial`` gives

    def read(self, file: Path, config: Mapping[str, object]) -> Format:
        """The format with its numbers. ``file`` says them: its quantization_config is ``config``; {}
        where it is the format's own (``PackedFormat.file``). The other files lie beside it.

        Raises:
            ModelError: a layout that is not known, or a contradiction; with the file and the key.
        """
        ...

    def linear(self, module: PackedModule) -> Stored | None:
        """The linear that a module's tensors make; None where they are no packed one.

        Raises:
            KeyError: a tensor is missing.
            ValueError: the tensors are not of this format.
        """
        ...

    def rounds_activations(self, found: Format) -> bool:
        """Whether its kernels quantize activations, too."""
        return False

    def check_model(self, found: Format, model: ModelRef) -> None:
        """Raises UsageError for a dtype that its kernels do not compute in."""
        return

    def check_device(self, found: Format, layers: Sequence[LayerReport], device: str) -> None:
        """Raises UsageError for linears that its kernels cannot run on ``device``: cpu or cuda."""
        return

    def load(
        self, artifact: Artifact, settings: EngineSettings, device: torch.device
    ) -> PreTrainedModel:
        """A transformers model on the device, in eval mode; by transformers itself, if it can.

        Raises:
            EngineError: the library cannot load it, or weights are missing or left over.
        """
        from qeval.models.loading import load_model

        return load_model(artifact.path, settings.dtype, device, settings.trust_remote_code)

    def trial(self, source: FloatLayer) -> Trial:
        """Quantized layers for `qeval doctor`, which runs them beside the float one. Asked of a format
        that has a ``library``, in a process of its own; whatever it raises is that library's error."""
        return Trial(())

    def found(
        self,
        label: str,
        num_bits: float | None,
        group_size: int | None,
        symmetric: bool | None,
        details: Mapping[str, object],
    ) -> Format:
        """The Format of a folder (``read``)."""
        needs = (self.name, self.extra, self.modules)
        return Format(*needs, label, num_bits, group_size, symmetric, details)


FORMATS: Registry[type[PackedFormat]] = Registry(
    "format",
    {  # in the order in which doctor tries them: the slowest to import first
        "gptq": "qeval.formats.gptq:Gptq",
        "awq": "qeval.formats.awq:Awq",
        "compressed-tensors": "qeval.formats.compressed_tensors:CompressedTensors",
        "auto-round": "qeval.formats.auto_round:AutoRound",
        "quanto": "qeval.formats.quanto:Quanto",
        "torchao": "qeval.formats.torchao:TorchAo",
        "hqq": "qeval.formats.hqq:Hqq",
        "bitsandbytes": "qeval.formats.bitsandbytes:BitsAndBytes",
        "fp8": "qeval.formats.fp8:Fp8",
    },
)


def formats() -> list[PackedFormat]:
    """One of each, the built-in ones first."""
    outside = [name for name in FORMATS if name not in FORMATS.built_in]
    return [FORMATS[name]() for name in (*FORMATS.built_in, *outside)]


def registered(found: Format) -> PackedFormat:
    """What is known of a folder's format. Raises UsageError where it is not registered any more."""
    return FORMATS[found.name]()


# -- what `qeval doctor` tries ------------------------------------------------------------------


@dataclass(frozen=True)
class Library:
    """A package that doctor lists and tries."""

    name: str  # in doctor's table
    distribution: str
    extra: str  # of qeval, that installs it
    modules: tuple[str, ...]  # that must be there


class FloatLayer(Protocol):
    """The float layer that is to be quantized."""

    group_size: int  # inputs that share a scale, in formats with groups

    @property
    def weight(self) -> torch.Tensor: ...  # [out_features, in_features], in ``dtype`` on the CPU

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...  # where the quantized layer is to run

    def linear(self, device: torch.device | str = "cpu") -> torch.nn.Linear:
        """A new one with the weights, without bias."""
        ...


@dataclass(frozen=True)
class Candidate:
    """One quantized layer: ``make`` gives a module that takes the float one's inputs."""

    name: str  # of the kernel or type: "marlin", "nf4"
    num_bits: int
    make: Callable[[], torch.nn.Module]


@dataclass(frozen=True)
class Trial:
    candidates: Sequence[Candidate]
    notes: Sequence[str] = ()
    facts: Mapping[str, object] = field(default_factory=dict)


# -- reading a configuration --------------------------------------------------------------------


def whole_number(
    file: Path, config: Mapping[str, object], *keys: str, known: Iterable[int] | None = None
) -> int:
    """The first of ``keys`` that is there, a whole number.

    Raises:
        ModelError: none is, it is no whole number, or not one of ``known``.
    """
    key = next((k for k in keys if config.get(k) is not None), keys[0])
    value = config.get(key)
    if type(value) is not int or (known is not None and value not in known):
        raise ModelError(
            f"{file}: quantization_config.{key} is {value!r}: must be "
            + (f"one of {', '.join(map(str, known))}" if known is not None else "a whole number")
        )
    return value


def group_size(file: Path, config: Mapping[str, object], *keys: str) -> int:
    """The first of ``keys``, positive or -1. Raises ModelError for anything else."""
    value = whole_number(file, config, *keys)
    if value < 1 and value != -1:
        raise ModelError(f"{file}: quantization_config.{keys[0]} is {value}: must be positive, or -1")
    return value


def mapping(value: object) -> Mapping[str, object]:
    """A value that should be a mapping; {} where it is none."""
    return value if isinstance(value, dict) else {}


def wide(bits: int | str, group: int | None, activations: int = 16) -> str:
    """``W4A16g128``; no group where there is one scale per output channel."""
    return f"W{bits}A{activations}" + (f"g{group}" if group and group > 0 else "")
