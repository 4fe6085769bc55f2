"""Checkpoints of packed integers on GPTQModel's kernels.

A kernel is named, never left to the library: its own choice may download a compiler's sources on first
use. ``auto`` takes the first of a fixed order that accepts the weights, and says why it passed over the
others.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from qeval.core.artifact import Artifact, Format, ModelRef
from qeval.core.cores import threads
from qeval.core.errors import EngineError, first_line
from qeval.core.settings import EngineSettings
from qeval.formats.base import PackedFormat
from qeval.formats.limits import KERNELS, check_half_precision
from qeval.models.side_files import copy_side_files
from qeval.models.weights import weight_files

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


_MERGES = ("cuda",)  # devices on which a small product takes as long as a larger one


class OnGptqModel(PackedFormat):
    """A format that runs on them."""

    extra: ClassVar[str] = "gptqmodel"
    modules: ClassVar[tuple[str, ...]] = ("gptqmodel",)
    suffixes: ClassVar[tuple[str, ...]] = (".qweight",)
    unmistakable: ClassVar[tuple[str, ...]] = (".qweight",)
    takes_kernel: ClassVar[bool] = True
    backends: ClassVar[Mapping[str, str]]  # the library's name of each kernel (core.execution.Kernel)

    def check_model(self, found: Format, model: ModelRef) -> None:
        check_half_precision(found.label, model)

    def load(
        self, artifact: Artifact, settings: EngineSettings, device: torch.device
    ) -> PreTrainedModel:
        """The transformers model inside; its ``kernel_facts`` say which kernel, and what the others
        said.

        Raises:
            EngineError: no kernel takes the weights, or the model lacks some of them.
        """
        asked = settings.execution.kernel or "auto"
        candidates = KERNELS[device.type] if asked == "auto" else (asked,)
        library = import_gptqmodel(settings.n_threads, device)
        backends: dict[str, str] = {kernel: self.backends[kernel] for kernel in candidates}
        with _readable(artifact.path, one_file="machete" in candidates) as folder:
            model, facts = _on_a_kernel(library, backends, artifact, folder, settings, device)
        model.kernel_facts = facts
        return model.eval()


def _on_a_kernel(
    library: ModuleType,
    backends: Mapping[str, str],
    artifact: Artifact,
    folder: Path,
    settings: EngineSettings,
    device: torch.device,
) -> tuple[PreTrainedModel, dict[str, object]]:
    """The model on the first of the kernels that takes it, and which that was."""
    import torch

    from qeval.formats.merged import merge

    # Rounded activations are those of each linear.
    apart = settings.layers_apart or settings.execution.running
    merges = device.type in _MERGES and not apart
    refused: dict[str, str] = {}

    def as_in_the_files(model: PreTrainedModel) -> None:
        check_whole(model, artifact)
        if merges:
            merge(model)

    for kernel, backend in backends.items():
        try:
            with _before_kernels(as_in_the_files):
                loaded = library.GPTQModel.load(
                    str(folder),
                    backend=getattr(library.BACKEND, backend),
                    device="cpu" if device.type == "cpu" else f"cuda:{device.index or 0}",
                    dtype=getattr(torch, settings.dtype),
                    trust_remote_code=settings.trust_remote_code,
                )
        except (torch.OutOfMemoryError, EngineError):
            raise
        except (
            Exception
        ) as err:  # each kernel has its own: a shape, a type, a compiler that is not there
            refused[kernel] = first_line(err)
            print(f"kernel {kernel} refused: {err}", file=sys.stderr)
            continue
        return loaded.model, {"kernel": kernel, **({"kernels_refused": refused} if refused else {})}
    reasons = "; ".join(f"{kernel}: {reason}" for kernel, reason in refused.items())
    raise EngineError(f"{folder}: no kernel takes these weights on {device.type}: {reasons}")


@contextmanager
def _before_kernels(then: Callable[[PreTrainedModel], None]) -> Iterator[None]:
    """While it is open, a model that GPTQModel loads goes through ``then`` with its tensors as they are
    in the files, before kernels lay them out in their own ways."""
    loader: Any = importlib.import_module("gptqmodel.models.loader")
    usual = loader.gptqmodel_post_init

    def first(model: PreTrainedModel, *args: object, **kwargs: object) -> object:
        then(model)
        return usual(model, *args, **kwargs)

    loader.gptqmodel_post_init = first
    try:
        yield
    finally:
        loader.gptqmodel_post_init = usual


@contextmanager
def _readable(folder: Path, *, one_file: bool) -> Iterator[Path]:
    """The folder; where its weights are .bin files, which GPTQModel does not read, or more files than
    it takes for a kernel, a temporary one with the same tensors in one safetensors file."""
    files = weight_files(folder)
    are_safe = files[0].suffix == ".safetensors"
    if are_safe and (len(files) == 1 or not one_file):
        yield folder
        return
    import torch
    from safetensors.torch import load_file, save_file

    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        if are_safe:
            tensors |= load_file(file)
        else:
            found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            tensors |= {
                name: tensor.contiguous().clone() for name, tensor in found.items()
            }  # none shared
    with tempfile.TemporaryDirectory(prefix="qeval-safetensors-") as made:
        copy_side_files(folder, Path(made))
        save_file(tensors, Path(made) / "model.safetensors", metadata={"format": "pt"})
        yield Path(made)


def check_whole(model: PreTrainedModel, artifact: Artifact) -> None:
    """Every quantized linear of the files is one in the model, and every other tensor has its place: a
    library that leaves out a tensor computes with whatever was in memory.

    Raises:
        EngineError: with the first name.
    """
    from qeval.models.weights import read_data, read_tensors

    packed = {layer.name for layer in artifact.layers}
    modules = dict(model.named_modules())
    lost = sorted(packed - modules.keys())
    lost += sorted(n for n in packed & modules.keys() if _is_float(modules[n]))

    def checked(name: str) -> bool:  # of a kernel's own tensors the bias alone is everywhere
        module, _, last = name.rpartition(".")
        return module not in packed or last == "bias"

    tensors = [t for t in read_tensors(artifact.path) if checked(t.name)]
    stored = {t.name for t in tensors}
    buffers = {name for name, _ in model.named_buffers()}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    held = {name for name in parameters | buffers if checked(name)}
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    made = {name for name in buffers if name.rpartition(".")[0] not in packed}  # rotary frequencies
    missing = sorted(held - stored - tied - made)
    left = sorted(
        t.name
        for t in tensors
        if t.name not in held
        and "rotary_emb" not in t.name
        and not (t.name.endswith(".bias") and not any(read_data(t)))  # AutoGPTQ: zeros for none
    )
    for what, names in (
        ("quantized linears not loaded", lost),
        ("missing keys", missing),
        ("unexpected keys", left),
    ):
        if names:
            raise EngineError(f"{artifact.path}: {len(names)} {what}, first {names[0]}")


def _is_float(module: torch.nn.Module) -> bool:
    """Whether a linear has its weight as a parameter; kernels keep buffers of their own."""
    return "weight" in module._parameters


def import_gptqmodel(n_threads: int | None, device: torch.device) -> ModuleType:
    """The package. It reads its number of CPU workers, and where its logs go, when it is imported.

    Its torch kernel has every single linear compiled on first use: on the CPU that is 210 runs of a C++
    compiler for a small model, many minutes. There it runs as it is written.
    """
    import torch._dynamo.config

    workers = max(2, threads(n_threads))  # with one it refuses to load a model
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(workers))

    from qeval.models.loading import lean_transformers

    lean_transformers()
    if device.type == "cpu":
        torch._dynamo.config.disable = True
    package = importlib.import_module("gptqmodel")
    importlib.import_module("gptqmodel.quantization")
    return package
