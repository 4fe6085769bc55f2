"""Importance matrices: per linear layer, the mean square of each input over the calibration tokens.

What llama.cpp's ``llama-imatrix`` stores (sum of x_j^2 over tokens / count; its ``tools/imatrix``),
made here from the float model in torch, so that it needs no second program and reads the model's own
token ids. llama.cpp weighs each weight's rounding error with it. The output head gets none, as in
``llama-imatrix``'s default.

Each expert of a mixture has its own, over the tokens that are routed to it; in the file all experts of
a layer are one tensor, ``blk.N.ffn_up_exps.weight``, whose entry is those of its experts one behind the
other. An expert that no token came to has ones, as llama.cpp's ``quantize`` reads a count of 0: all its
inputs are equally important.
"""

from __future__ import annotations

import ctypes
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qeval.core.artifact import ModelRef
from qeval.core.errors import BuildError
from qeval.core.progress import Progress
from qeval.llama.gguf_file import GgufTensor, Header

if TYPE_CHECKING:
    import torch

Importance = dict[str, NDArray[np.float32]]
_EXPERTS = {  # an expert's linear -> the file's tensors of all experts that read the same input
    "gate_proj": ("ffn_gate_exps", "ffn_gate_up_exps"),
    "up_proj": ("ffn_up_exps", "ffn_gate_up_exps"),
    "down_proj": ("ffn_down_exps",),
}
_FLOATS = ("F32", "F16", "BF16", "F64")
_NAMED = 3  # tensors in a note


@dataclass(frozen=True)
class Measured:
    means: Importance  # by module name -> [in_features]
    n_experts: int = 0
    n_unseen: int = 0  # experts that no token came to


def mean_squares(
    model: ModelRef, windows: Sequence[Sequence[int]], *, device: str, progress: Progress
) -> Measured:
    """Mean square of every input channel of every linear, those of experts among them.

    Raises:
        BuildError: there are no windows, or an input was not finite.
        EngineError: the model cannot be loaded whole.
    """
    import torch

    from qeval.models.experts import expert_of, experts_as_linears
    from qeval.models.linears import device_of, linears
    from qeval.models.loading import load_model

    if not windows:
        raise BuildError(
            "no calibration windows for the importance matrix: raise calibration.n_samples"
        )
    place = device_of(device)
    net = load_model(model.path, model.dtype, place, model.trust_remote_code).to(place)
    sums: dict[str, _Sum] = {}
    with experts_as_linears(net), torch.inference_mode():
        for linear in linears(net):
            sums[linear.name] = _Sum(linear.weight.shape[1])
            linear.module.register_forward_pre_hook(sums[linear.name])
        for done, window in enumerate(windows):
            net(torch.tensor([list(window)], device=place), use_cache=False)
            progress(done + 1, len(windows), "windows")
    experts = {expert: total for name, total in sums.items() if (expert := expert_of(name))}
    unseen = sum(total.n_tokens == 0 for total in experts.values())
    # A linear that is no expert's and was not called is no part of what the model computes.
    means = {n: total.mean() for n, total in sums.items() if total.n_tokens or expert_of(n)}
    broken = [name for name, mean in means.items() if not np.isfinite(mean).all()]
    if broken:
        raise BuildError(f"the inputs of {broken[0]} are not finite: the float model is broken")
    return Measured(means, len(experts), unseen)


class _Sum:
    """A forward pre-hook that adds up the squares of a linear's inputs."""

    def __init__(self, in_features: int) -> None:
        self._n_in = in_features
        self._sum: torch.Tensor | None = None
        self.n_tokens = 0

    def __call__(self, _module: object, args: tuple[torch.Tensor, ...]) -> None:
        x = args[0].detach().flatten(0, -2).float()  # [tokens, in]
        squares = x.square().sum(dim=0).double()
        self._sum = squares if self._sum is None else self._sum + squares
        self.n_tokens += len(x)

    def mean(self) -> NDArray[np.float32]:
        """[in_features]; ones where there was no token."""
        if self._sum is None or not self.n_tokens:
            return np.ones(self._n_in, np.float32)
        mean: NDArray[np.float32] = (self._sum / self.n_tokens).float().cpu().numpy()
        return mean


def to_gguf_names(importance: Mapping[str, NDArray[np.float32]], header: Header) -> Importance:
    """The same under the file's tensor names (``blk.0.attn_q.weight``), by the ``gguf`` package's map;
    experts stacked. What has no tensor of its size in the file (a linear that the converter splits or
    joins) is left out; ``unweighed`` finds it.

    Raises:
        BuildError: the map does not know the architecture.
    """
    import gguf

    from qeval.models.experts import expert_of

    known = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    if header.architecture not in known:
        raise BuildError(f"no tensor name map for {header.architecture}: pip install --upgrade gguf")
    names = gguf.get_tensor_name_map(known[header.architecture], header.get("block_count"))
    tensors = {t.name: t for t in header.tensors}
    renamed: Importance = {}
    for module, mean in importance.items():
        if expert_of(module) is None:
            name = names.get_name(f"{module}.weight", try_suffixes=(".weight",))
            if name in tensors and mean.size == _entry_size(tensors[name]):
                renamed[name] = mean
    return renamed | _stacked(importance, tensors)


def _stacked(
    importance: Mapping[str, NDArray[np.float32]], tensors: Mapping[str, GgufTensor]
) -> Importance:
    """The entries of the tensors of all experts, [experts * in_features]."""
    from qeval.models.experts import expert_of

    layers: dict[str, dict[int, NDArray[np.float32]]] = defaultdict(dict)
    for module, mean in importance.items():
        if (expert := expert_of(module)) is not None:
            experts, index = expert
            block = next((part for part in experts.split(".") if part.isdigit()), "")
            for kind in _EXPERTS.get(module.rpartition(".")[2], ()):
                layers[f"blk.{block}.{kind}.weight"][index] = mean
    return {
        name: np.concatenate([each[i] for i in sorted(each)])
        for name, each in layers.items()
        if name in tensors and sum(mean.size for mean in each.values()) == _entry_size(tensors[name])
    }


def _entry_size(tensor: GgufTensor) -> int:
    """What llama.cpp wants of a tensor: a value for each input, of each matrix in a stack."""
    return prod(tensor.shape[:-2]) * tensor.shape[-1]


def with_ones(importance: Importance, header: Header) -> Importance:
    """For types that llama.cpp does not make without: the linears that lack an entry have ones."""
    missing = (t for t in header.tensors if t.is_linear and t.name not in importance)
    return importance | {t.name: np.ones(_entry_size(t), np.float32) for t in missing}


def notes(measured: Measured, importance: Importance, result: Header) -> list[str]:
    """What a reader of the row must know: experts without tokens, linears that were quantized without
    an importance of theirs."""
    said = []
    if measured.n_unseen:
        said.append(
            f"{measured.n_unseen} of {measured.n_experts} experts saw no calibration token: "
            "their inputs are weighed equally"
        )
    quantized = [t.name for t in result.tensors if t.is_linear and t.kind not in _FLOATS]
    if bare := [name for name in quantized if name not in importance]:
        more = f" and {len(bare) - _NAMED} more" if len(bare) > _NAMED else ""
        said.append(
            f"{len(bare)} of {len(quantized)} linears quantized without the importance matrix, which "
            f"is not known for them: {', '.join(bare[:_NAMED])}{more}"
        )
    return said


def as_ctypes(lib: Any, importance: Importance) -> tuple[object, list[object]]:
    """A ``llama_model_imatrix_data`` array ended by a null name, and what must stay alive beside it."""
    entries = (lib.llama_model_imatrix_data * (len(importance) + 1))()
    alive: list[object] = [entries]
    for entry, (name, mean) in zip(entries[:-1], importance.items(), strict=True):
        values = np.ascontiguousarray(mean, np.float32)
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        alive.append(values)
    return entries, alive
