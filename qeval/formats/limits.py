"""What packed integer formats can hold, and the kernels a spec may name (torch-free)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from math import prod

from qeval.core.artifact import ModelRef
from qeval.core.errors import UsageError
from qeval.core.execution import Kernel
from qeval.models.weights import linear_shapes, turned_linears

KERNELS: Mapping[str, tuple[Kernel, ...]] = {
    "cuda": ("marlin", "exllama", "triton", "torch"),
    "cpu": ("aten", "torch"),
}
"""Those of each kind of device, in the order in which `auto` tries them."""

ON_REQUEST: Mapping[str, tuple[Kernel, ...]] = {"cuda": ("machete",), "cpu": ()}
"""Those that run only where a spec names them: they download, or compile for long, on first use."""

Shapes = Mapping[str, tuple[int, int]]
"""Linears by name: [out_features, in_features]."""


def check_half_precision(method: str, model: ModelRef) -> None:
    """Raises UsageError for float32, which no kernel of packed 4-bit weights computes in."""
    if model.dtype == "float32":
        raise UsageError(
            f"{method}: its kernels compute in bfloat16 or float16, not float32 ({model.id}): "
            "set dtype: bfloat16 in the spec, or on the model"
        )


def check_kernel(method: str, kernel: Kernel, device: str) -> None:
    """Raises UsageError for a kernel that ``device`` (``cpu`` or ``cuda``) does not have."""
    kernels = (*ON_REQUEST[device], *KERNELS[device])
    if kernel not in ("auto", *kernels):
        raise UsageError(
            f"{method}: kernel: {kernel} does not run on {device.replace('cuda', 'CUDA')}: "
            f"use {' or '.join(kernels)}, or leave it out"
        )


def check_folder(method: str, model: ModelRef) -> None:
    """Raises UsageError for a .gguf file, which no method quantizes."""
    if model.path.is_file():
        raise UsageError(
            f"{method}: {model.id} is a .gguf file: it needs the float model's folder; none and "
            "checkpoint take the file as it is"
        )


def check_no_conv1d(method: str, model: ModelRef) -> None:
    """Raises UsageError for a model whose linear layers are transformers' Conv1D, for a library that
    knows nn.Linear alone and would leave the model as it was."""
    check_folder(method, model)
    if turned := turned_linears(model.path):
        raise UsageError(
            f"{method}: quantizes nn.Linear layers, and {model.id} has Conv1D in their place "
            f"({turned[0]} and others): use rtn, gptq, bitsandbytes or gguf"
        )


def check_widths(
    method: str,
    model: ModelRef,
    group_size: int,
    *,
    inputs_of: int = 1,
    outputs_of: int = 1,
    otherwise: str = "",
) -> None:
    """Raises UsageError that names every linear whose widths the format cannot hold: inputs that are
    not whole groups (-1: any), inputs or outputs that do not fill the words they are packed in; and a
    group size that fits, or what to do ``otherwise``; "": nothing."""
    check_folder(method, model)
    shapes = linear_shapes(model.path)
    group = inputs_of if group_size == -1 else group_size
    wrong = {n: s for n, s in shapes.items() if s[1] % group or s[1] % inputs_of or s[0] % outputs_of}
    groups = [
        g for g in (128, 64, 32, 16) if not any(i % g or i % inputs_of for _, i in wrong.values())
    ]
    fits = groups and not any(out % outputs_of for out, _ in wrong.values())
    needs = f"inputs that are multiples of {group}"
    refuse_shapes(
        f"{method}: group_size {group_size}",
        wrong,
        needs + f", outputs of {outputs_of}" * (outputs_of > 1),
        f"group_size {groups[0]} fits" if fits else otherwise or "this format cannot hold them",
    )


def refuse_shapes(method: str, wrong: Shapes, needs: str, fix: str) -> None:
    """Raises UsageError that names the linears a format cannot hold; a library that is given them
    leaves them out without a word, or dies in the middle."""
    if wrong:
        n = "1 linear is" if len(wrong) == 1 else f"{len(wrong)} linears are"
        raise UsageError(f"{method} needs {needs}; {n} not: {', '.join(name_all(wrong))}: {fix}")


def name_all(shapes: Shapes) -> list[str]:
    """``model.layers.{0-29}.self_attn.q_proj [576, 576]``: every linear, those of one shape and one
    place in their blocks together."""
    alike: dict[tuple[tuple[str, ...], tuple[int, int]], list[tuple[int, ...]]] = defaultdict(list)
    for name, shape in shapes.items():
        parts = name.split(".")
        key = tuple("" if part.isdigit() else part for part in parts)
        alike[key, shape].append(tuple(int(part) for part in parts if part.isdigit()))
    out = []
    for (key, shape), places in alike.items():
        axes = [sorted(set(axis)) for axis in zip(*places, strict=True)]
        whole = prod(map(len, axes)) == len(places)  # else a range would name linears that are right
        for written in [axes] if whole else [[[i] for i in place] for place in places]:
            numbers = iter(written)
            name = ".".join(part or _ranges(next(numbers)) for part in key)
            out.append(f"{name} [{shape[0]}, {shape[1]}]")
    return out


def _ranges(numbers: Iterable[int]) -> str:
    """``7``, ``{0-29}``, ``{0,2-5}``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    text = ",".join("-".join(map(str, run)) for run in runs)
    return text if len(runs) == len(runs[0]) == 1 else f"{{{text}}}"
