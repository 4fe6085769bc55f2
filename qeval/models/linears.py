"""The linear layers of a transformers model, and saving a model whose weights were rounded.

``nn.Linear`` keeps weights as [out, in]; GPT-2's ``Conv1D`` as [in, out]. Both are handed out as
[out, in]. Output heads and embeddings are left alone, as every weight-only method does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from qeval.core.artifact import Artifact, LayerReport, ModelRef
from qeval.models.routers import routers
from qeval.models.side_files import copy_side_files
from qeval.models.tensors import DTYPE_BYTES, unquantized_note

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Linear:
    name: str
    module: nn.Module
    transposed: bool  # Conv1D

    @property
    def weight(self) -> Tensor:
        """[out_features, in_features]; a view, so writing into it changes the model."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight.data.T if self.transposed else weight.data


def linears(model: PreTrainedModel) -> Iterator[Linear]:
    """Every linear layer that a method quantizes, in the model's own order: all but the output head and
    a mixture's routers; those of its experts where experts.py has opened them."""
    from transformers.pytorch_utils import Conv1D

    head, left = model.get_output_embeddings(), router_names(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not head and name not in left:
            yield Linear(name, module, isinstance(module, Conv1D))


def router_names(model: PreTrainedModel) -> frozenset[str]:
    """The linear layers of a model, float or packed, that are routers (routers.py)."""
    shapes: dict[str, tuple[int, ...]] = {n: tuple(p.shape) for n, p in model.named_parameters()}
    for name, module in model.named_modules():
        if sizes := widths(module):
            shapes[f"{name}.weight"] = sizes[::-1]
    return routers(shapes)


def head_name(model: PreTrainedModel) -> str | None:
    """The output head's name; None: it is not a separate module."""
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), None)


def linears_of_any_format(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """Every linear layer but the head and routers, of whatever class a packed format has for it; of
    layers inside one another the outermost. With names, in the model's own order."""
    head, left = model.get_output_embeddings(), router_names(model)
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module is not head and module not in inside and name not in left and widths(module):
            inside.update(module.modules())
            yield name, module


def widths(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a linear layer of any library; None: it is not a linear layer."""
    from transformers.pytorch_utils import Conv1D

    for into, out in (("in_features", "out_features"), ("infeatures", "outfeatures")):  # auto-round's
        sizes = getattr(module, into, None), getattr(module, out, None)
        if isinstance(sizes[0], int) and isinstance(sizes[1], int):
            return sizes[0], sizes[1]
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    return None


def save_simulated(
    model: PreTrainedModel,
    source: ModelRef,
    out: Path,
    layers: list[LayerReport],
    notes: tuple[str, ...] = (),
) -> Artifact:
    """Write the model with its rounded float weights as a normal Hugging Face folder ``out/model``.

    Sizes in the Artifact are those that the packed format would have (``layers[].stored_bytes``) plus
    everything unquantized in the model's dtype.
    """
    folder = out / "model"
    model.save_pretrained(folder, max_shard_size="4GB")
    copy_side_files(source.path, folder)
    width = DTYPE_BYTES[source.dtype]
    embeddings = {id(p): p for m in _embedding_modules(model) for p in m.parameters()}
    n_embedding = sum(p.numel() for p in embeddings.values())
    n_total = sum(p.numel() for p in model.parameters())
    n_linear = sum(r.shape[0] * r.shape[1] for r in layers)
    linear_bytes = sum(r.stored_bytes for r in layers)
    rest = (n_total - n_embedding - n_linear) * width
    return Artifact(
        path=folder,
        engine="hf",
        simulated=True,
        weight_bytes=linear_bytes + rest,
        embedding_bytes=n_embedding * width,
        bpw=8 * linear_bytes / n_linear,
        bpw_file=8 * (linear_bytes + rest + n_embedding * width) / n_total,
        layers=tuple(layers),
        notes=(*notes, *unquantized_note(n_linear, n_total - n_embedding)),
    )


def _embedding_modules(model: PreTrainedModel) -> list[nn.Module]:
    head = model.get_output_embeddings()
    return [m for m in model.modules() if isinstance(m, nn.Embedding)] + ([head] if head else [])


def device_of(name: str) -> torch.device:
    """``auto`` is CUDA where torch has it."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
