"""One linear layer, made by a quantization library, run and compared: what `qeval doctor` tries.

The layer: weights [512, 1024], whose groups of 128 inputs differ in size up to 16 times, so that a
scale in the wrong place shows; inputs [16, 1024]. Its deviation is ||Y - X W^T|| / ||X W^T|| with the
float weights W. Seen (CPU, every library of trials.py): 4 bits 0.07 to 0.10, 8 bits 0.012 to 0.015. A
layer that is wrong misses the bounds: a group left out or zero points off by one 0.35, scales of the
next group or row 0.9 (8 bits: 0.36), other weights 1.4.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from qeval.core.errors import with_class

if TYPE_CHECKING:
    import torch

OUT, IN, TOKENS, GROUP = 512, 1024, 16, 128
BOUNDS = {16: 0.02, 8: 0.05, 4: 0.2}  # largest deviation of a right layer, by the bits of its weights
CALLS = 5

if TYPE_CHECKING:
    import torch

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Layer:
    """One layer that was tried."""

    name: str  # what it is: "nf4", or the name of a kernel
    error: str  # "": it works
    kernel: str = ""  # the class that ran, named as a record's ``kernels``
    ms: float | None = None  # a call, the best of some; on the CPU with one thread
    deviation: float | None = None  # None: not finite, or it did not run


class Runnable(Protocol):
    """A layer that is ready: its product, what that should be, and the class that makes it."""

    wanted: Array  # [TOKENS, OUT]

    def run(self) -> Array | torch.Tensor: ...  # [TOKENS, OUT]

    def kernel(self) -> str: ...


def tried(name: str, num_bits: int, make: Callable[[], Runnable]) -> Layer:
    """Make it, run it, compare it; whatever goes wrong is the Layer's error."""
    try:
        layer = make()
        deviation = _deviation(layer.run(), layer.wanted)
        ms = min(_ms(layer.run) for _ in range(CALLS))
        kernel = layer.kernel()
    except Exception as err:
        return Layer(name, with_class(err))
    bound = BOUNDS[num_bits]
    right = deviation <= bound  # not of a NaN
    error = (
        "" if right else f"its product is off by {deviation:.1%}; a right one by {bound:.0%} at most"
    )
    return Layer(name, error, kernel, ms, deviation if math.isfinite(deviation) else None)


def _deviation(found: Array | torch.Tensor, wanted: Array) -> float:
    values = found if isinstance(found, np.ndarray) else found.float().cpu().numpy()
    if values.shape != wanted.shape:
        raise ValueError(f"its product has the shape {values.shape}, not {wanted.shape}")
    return float(np.linalg.norm(values - wanted) / np.linalg.norm(wanted))


def _ms(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) * 1000


def problem() -> tuple[Array, Array]:
    """Weights [OUT, IN] and inputs [TOKENS, IN]."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((OUT, IN // GROUP, GROUP)) * 0.02
    weight *= 2.0 ** rng.integers(-2, 3, (OUT, IN // GROUP, 1))
    inputs = rng.standard_normal((TOKENS, IN))
    return weight.reshape(OUT, IN).astype(np.float32), inputs.astype(np.float32)


class ReferenceLayer:
    """The layer in torch, a formats.base.FloatLayer: in 16 bits, on the device that qeval takes.

    torch is imported on first use, after the library: one that does not import is told at once."""

    group_size = GROUP

    @cached_property
    def device(self) -> torch.device:
        from qeval.models.linears import device_of

        return device_of("auto")

    @cached_property
    def dtype(self) -> torch.dtype:
        import torch

        old = self.device.type == "cuda" and torch.cuda.get_device_capability(self.device) < (8, 0)
        return torch.float16 if old else torch.bfloat16

    @cached_property
    def _problem(self) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        weight, inputs = (torch.from_numpy(values).to(self.dtype) for values in problem())
        return weight, inputs

    @property
    def weight(self) -> torch.Tensor:  # on the CPU, where the libraries pack
        return self._problem[0]

    @cached_property
    def inputs(self) -> torch.Tensor:
        return self._problem[1].to(self.device)

    @cached_property
    def wanted(self) -> Array:
        weight, inputs = self._problem
        product: Array = (inputs.float() @ weight.float().T).numpy()
        return product

    def linear(self, device: torch.device | str = "cpu") -> torch.nn.Linear:
        """A new ``nn.Linear`` with the weights."""
        import torch

        made = torch.nn.Linear(IN, OUT, bias=False, dtype=self.dtype)
        made.weight.data.copy_(self.weight)
        return made.requires_grad_(False).to(device)

    def with_layer(self, layer: torch.nn.Module) -> TorchLayer:
        return TorchLayer(layer, self)


class TorchLayer:
    """A module that takes the float layer's place."""

    def __init__(self, layer: torch.nn.Module, source: ReferenceLayer) -> None:
        self._layer, self._inputs = layer, source.inputs
        self._on_gpu = source.device.type == "cuda"
        self.wanted = source.wanted

    def run(self) -> torch.Tensor:
        import torch

        with torch.no_grad():  # quanto's int4 refuses inference mode
            out: torch.Tensor = self._layer(self._inputs)
        if self._on_gpu:
            torch.cuda.synchronize()
        return out

    def kernel(self) -> str:
        """As a record names it; some classes hide their widths from that."""
        import torch

        from qeval.formats.load import kernels

        inner = self._layer[0] if isinstance(self._layer, torch.nn.Sequential) else self._layer
        return next(iter(kernels(torch.nn.Sequential(inner))), type(inner).__name__)
