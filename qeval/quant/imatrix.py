"""Importance matrices: per linear layer, the mean square of each input over the calibration tokens.

What llama.cpp's ``llama-imatrix`` stores (sum of x_j^2 over tokens / count; its ``tools/imatrix``),
made here from the float model in torch, so that it needs no second program and reads the model's own
token ids. llama.cpp weighs each weight's rounding error with it. The output head gets none, as in
``llama-imatrix``'s default.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qeval.engines.gguf_file import Header
from qeval.errors import BuildError
from qeval.quant.base import ModelRef, Progress

if TYPE_CHECKING:
    import torch

Importance = dict[str, NDArray[np.float32]]


def mean_squares(
    model: ModelRef, windows: Sequence[Sequence[int]], *, device: str, progress: Progress
) -> Importance:
    """Mean square of every input channel of every linear: module name -> [in_features].

    Raises:
        BuildError: there are no windows, or an input was not finite.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from qeval.quant.linears import linears

    if not windows:
        raise BuildError(
            "no calibration windows for the importance matrix: raise calibration.n_samples"
        )
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    net: Any = AutoModelForCausalLM.from_pretrained(
        model.path, dtype=getattr(torch, model.dtype), trust_remote_code=model.trust_remote_code
    )
    net.to(place).eval()
    sums: dict[str, torch.Tensor] = {}
    for linear in linears(net):
        linear.module.register_forward_pre_hook(_adder(sums, linear.name))
    with torch.inference_mode():
        for done, window in enumerate(windows):
            net(torch.tensor([list(window)], device=place), use_cache=False)
            progress(done + 1, len(windows), "windows")
    tokens = sum(map(len, windows))
    means = {name: (total / tokens).float().cpu().numpy() for name, total in sums.items()}
    broken = [name for name, mean in means.items() if not np.isfinite(mean).all()]
    if broken:
        raise BuildError(f"the inputs of {broken[0]} are not finite: the float model is broken")
    return means


def _adder(sums: dict[str, torch.Tensor], name: str) -> Any:
    """A forward pre-hook that adds the squares of the layer's inputs to ``sums[name]``."""

    def hook(_module: Any, args: tuple[torch.Tensor, ...]) -> None:
        x = args[0].detach().flatten(0, -2).float()  # [tokens, in]
        squares = x.square().sum(dim=0).double()
        sums[name] = sums[name] + squares if name in sums else squares

    return hook


def to_gguf_names(importance: Mapping[str, NDArray[np.float32]], header: Header) -> Importance:
    """The same under the file's tensor names (``blk.0.attn_q.weight``), by the ``gguf`` package's map.

    Raises:
        BuildError: the map knows the architecture or one of its layers not.
    """
    import gguf

    known = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    if header.architecture not in known:
        raise BuildError(f"no tensor name map for {header.architecture}: pip install --upgrade gguf")
    names = gguf.get_tensor_name_map(known[header.architecture], header.get("block_count"))
    renamed: Importance = {}
    for module, mean in importance.items():
        name = names.get_name(f"{module}.weight", try_suffixes=(".weight",))
        if name is None:
            raise BuildError(f"{header.architecture}: no GGUF tensor is known for the layer {module}")
        renamed[name] = mean
    return renamed


def as_ctypes(lib: Any, importance: Importance) -> tuple[Any, list[Any]]:
    """A ``llama_model_imatrix_data`` array ended by a null name, and what must stay alive beside it."""
    entries = (lib.llama_model_imatrix_data * (len(importance) + 1))()
    alive: list[Any] = [entries]
    for entry, (name, mean) in zip(entries[:-1], importance.items(), strict=True):
        values = np.ascontiguousarray(mean, np.float32)
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        alive.append(values)
    return entries, alive
