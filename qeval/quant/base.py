"""What a quantization method is (Method), gets (BuildContext) and returns (Artifact).

A method's module must import neither torch nor transformers nor llama_cpp at its top: the parent
process reads its ``version``, ``Options`` and ``label``; the worker calls ``build``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, TypeVar

from qeval.core.artifact import Artifact, ModelRef
from qeval.core.errors import BuildError, raise_all
from qeval.core.options import Options
from qeval.core.progress import Progress
from qeval.core.registry import Registry

if TYPE_CHECKING:
    from qeval.data.calibration import Calibration, CalibrationOptions


OptionsT = TypeVar("OptionsT", contravariant=True)  # the class of a method's options


class Packages(NamedTuple):
    """An extra of qeval, and the modules by which it is recognised."""

    extra: str
    modules: tuple[str, ...]


@dataclass(frozen=True)
class BuildContext:
    """What a build may use. ``out`` is an empty folder that becomes the artifact when build returns."""

    model: ModelRef
    out: Path
    base: Artifact | None  # the artifact that Method.base asked for
    calibration: Callable[[CalibrationOptions], Calibration]  # draws the windows a method asks for
    progress: Progress
    cache_dir: Path
    device: str = "auto"
    n_threads: int | None = None
    unfinished: Path | None = None  # a folder that outlives a build that dies; gone once one is whole


class Method(Protocol[OptionsT]):
    """How weights become an artifact. Register it in METHODS. Subclass it, with the class of its
    options: what most methods do not need has its default here."""

    version: ClassVar[int]  # raise it when the same options give other weights
    Options: ClassVar[type[Options]]
    scalar: ClassVar[str | None]  # the option that `- gguf: Q8_0` sets, or None
    engine: ClassVar[str | None]  # engine of its artifacts; None where only find() knows

    def label(self, options: OptionsT) -> str:
        """The row's name in tables: ``RTN W4A16 g128``, ``Q5_K_M``."""
        ...

    def base(self, options: OptionsT, dtype: str) -> dict[str, object] | None:
        """Options of the artifact of this same method that this one is made from, or None."""
        return None

    def environment(self, options: OptionsT) -> str | None:
        """The environment (`qeval env`) whose interpreter runs build(); None: this one."""
        return None

    def rounds_activations(self, options: OptionsT) -> bool:
        """Whether its kernels quantize activations themselves, so that a spec's ``activations`` beside
        it would round them twice."""
        return False

    def packages(self, options: OptionsT) -> tuple[Packages, ...]:
        """What must be installed here, beside the engine's own."""
        return ()

    def check_packages(self, options: OptionsT) -> None:
        """Raises MissingExtraError for a package of these that is not there."""
        from qeval.core.extras import require

        raise_all(*(partial(require, p.extra, *p.modules) for p in self.packages(options)))

    def reads(self, options: OptionsT) -> CalibrationOptions | None:
        """The calibration text that build() asks for; None: none."""
        return None

    def models(self, options: OptionsT) -> tuple[tuple[str, str | None], ...]:
        """Other models that it takes, by name and revision; those of a hub are downloaded first."""
        return ()

    def simulates(self, options: OptionsT) -> bool | None:
        """Whether its artifacts are float weights that carry the rounding; None: only build() knows."""
        return None

    def weight_bits(self, options: OptionsT, dtype: str) -> float:
        """The fewest bits that build() writes for a weight of a linear layer, for the space on the
        disk; 0: not known before. ``dtype``: the model's."""
        return 0.0

    # The next three are called in the parent before any job and import nothing heavy. What they find is
    # raised as a QevalError; errors.raise_all() makes several checks and raises what all of them find.

    def preflight(self, options: OptionsT, model: ModelRef) -> None:
        """What can be known of a row that is to be built without loading the model: a package that is
        not installed, a layer whose shape the format cannot hold (``weights.linear_shapes``)."""
        return

    def check_tools(self, options: OptionsT, model: ModelRef, cache_dir: Path) -> None:
        """Whether tools that build() starts, and that the cache keeps, know this model."""
        return

    def check_device(self, options: OptionsT, model: ModelRef, device: str) -> None:
        """Whether it can be built and run on ``device``: ``cpu``, or ``cuda`` of whatever number."""
        return

    # A method has one of the next two.

    def find(self, options: OptionsT, model: ModelRef, cache_dir: Path) -> Artifact | None:
        """Weights that are there already, used where they are: asked in the parent, imports nothing
        heavy, never cached. None: build() makes them."""
        return None

    def build(self, options: OptionsT, context: BuildContext) -> Artifact:
        """Make the weights in ``context.out``; in a worker process."""
        raise BuildError(f"{type(self).__name__} makes no weights")


METHODS: Registry[type[Method[Options]]] = Registry(
    "method",
    {
        "none": "qeval.quant.none:Unquantized",
        "rtn": "qeval.quant.rtn:Rtn",
        "gptq": "qeval.quant.gptq:Gptq",
        "awq": "qeval.quant.awq:Awq",
        "gguf": "qeval.quant.gguf:Gguf",
        "bitsandbytes": "qeval.quant.bitsandbytes:BitsAndBytes",
        "hqq": "qeval.quant.hqq:Hqq",
        "torchao": "qeval.quant.torchao:TorchAo",
        "quanto": "qeval.quant.quanto:Quanto",
        "auto-round": "qeval.quant.auto_round:AutoRound",
        "compressed-tensors": "qeval.quant.compressed_tensors:CompressedTensors",
        "quantease": "qeval.quant.quantease:QuantEase",
        "spqr": "qeval.quant.spqr:Spqr",
        "smoothquant": "qeval.quant.smoothquant:SmoothQuant",
        "checkpoint": "qeval.quant.checkpoint:Checkpoint",
        "endpoint": "qeval.quant.endpoint:EndpointRow",
    },
)
"""The options that a method is given are always of its own ``Options``."""
