"""An Artifact for weights that exist already, from their headers alone (torch-free)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from qeval.core.artifact import Artifact, Format, LayerReport
from qeval.core.errors import ModelError
from qeval.formats.base import registered
from qeval.formats.recognise import check_floats, recognise
from qeval.formats.tensors import PackedModule
from qeval.models.tensors import (
    DTYPE_BYTES,
    Contents,
    Tensor,
    is_embedding,
    is_plausible,
    unquantized_note,
)
from qeval.models.weights import read_contents, read_tensors

_NAMED = 3  # layers in a note


@dataclass(frozen=True)
class PackedLinear:
    name: str
    shape: tuple[int, ...]  # [out_features, in_features]
    kind: str  # "int4", "nf4", "fp8"
    tensors: tuple[Tensor, ...]

    @property
    def n_bytes(self) -> int:
        return sum(t.n_bytes for t in self.tensors)

    @property
    def n_weights(self) -> int:
        return math.prod(self.shape)


def describe_folder(path: Path, dtype: str) -> Artifact:
    """A .gguf file and a packed folder as they are stored; a float folder as ``dtype`` (that is how it
    is loaded).

    Raises:
        ModelError: weights are missing, damaged, or of no known format.
    """
    if path.suffix == ".gguf":
        from qeval.formats.gguf import describe_gguf

        return describe_gguf(path)
    if recognise(path) is not None:
        return describe_packed(path)
    tensors = read_tensors(path)
    check_floats(path, tensors)
    n_embedding = sum(t.n_elements for t in tensors if t.is_embedding)
    n_rest = sum(t.n_elements for t in tensors) - n_embedding
    width = DTYPE_BYTES[dtype]
    return Artifact(
        path=path,
        engine="hf",
        simulated=False,
        weight_bytes=n_rest * width,
        embedding_bytes=n_embedding * width,
        bpw=8.0 * width,
        bpw_file=8.0 * width,
    )


def describe_packed(folder: Path) -> Artifact:
    """A packed folder as it is stored, from its headers alone: exact bytes, one LayerReport for each
    quantized linear.

    ``bpw`` is over the quantized linears but a packed output head; ``bpw_file`` over all parameters.

    Raises:
        ModelError: see ``recognise``; or the tensors are not those of the format.
    """
    found = recognise(folder)
    if found is None:
        raise ModelError(f"{folder}/config.json: no quantization_config: these are float weights")
    contents = read_contents(folder)
    packed = packed_linears(folder, contents, found)
    owner = {t.name: p.name for p in packed for t in p.tensors}
    rest = [t for t in contents.tensors if t.name not in owner]
    if false := next((t for t in rest if not is_plausible(t)), None):
        raise ModelError(f"{false.file}: {false.name} is {false.dtype}, and no part of {found.label}")
    total = sum(t.n_bytes for t in contents.tensors)
    embedding = sum(t.n_bytes for t in rest if t.is_embedding)
    embedding += sum(p.n_bytes for p in packed if is_embedding(p.name))
    linears = [p for p in packed if not is_embedding(p.name)] or packed
    n_parameters = sum(t.n_elements for t in rest) + sum(p.n_weights for p in packed)
    return Artifact(
        path=folder,
        engine="hf",
        simulated=False,
        weight_bytes=total - embedding,
        embedding_bytes=embedding,
        bpw=8 * sum(p.n_bytes for p in linears) / sum(p.n_weights for p in linears),
        bpw_file=8 * total / n_parameters,
        layers=tuple(LayerReport(p.name, p.shape, p.kind, p.n_bytes) for p in packed),
        notes=(*_left_as_floats(packed, rest), *_not_linear(packed, rest)),
        format=found,
    )


def packed_linears(folder: Path, contents: Contents, found: Format) -> list[PackedLinear]:
    """The quantized linears of a checkpoint in the format ``found``, in file order.

    Raises:
        ModelError: there is none, a tensor of one is missing, or they are not of the bits that the
            configuration says.
    """
    one, name = registered(found), found.name
    linears = []
    for module, parts in _modules(contents, one.suffixes).items():
        try:
            stored = one.linear(PackedModule(module, parts, contents.facts, found))
        except KeyError as err:
            raise ModelError(f"{folder}: {module} lacks its tensor {err} ({name})") from err
        except (ValueError, ZeroDivisionError, IndexError, TypeError) as err:
            raise ModelError(f"{folder}: {module}: its tensors are not {name}: {err}") from err
        if stored is not None:
            linears.append(PackedLinear(module, *stored, tuple(parts.values())))
    if not linears:
        raise ModelError(f"{folder}: config.json says {name}, but no tensor is packed so")
    return linears


def _modules(contents: Contents, suffixes: tuple[str, ...]) -> dict[str, dict[str, Tensor]]:
    """Modules that have a tensor of the format, each with all its tensors but the bias.

    ``suffixes``: the parts of which one marks a quantized module; a module's other tensors are those
    whose names go on from its name.
    """
    out: dict[str, dict[str, Tensor]] = {
        t.name.removesuffix(suffix): {}
        for t in contents.tensors
        for suffix in suffixes
        if t.name.endswith(suffix)
    }
    for t in contents.tensors:
        stem = t.name
        while stem and stem not in out:
            stem = stem.rpartition(".")[0]
        rest = t.name[len(stem) + 1 :]
        if stem and rest != "bias":
            out[stem][rest] = t
    return out


def _left_as_floats(packed: list[PackedLinear], rest: Iterable[Tensor]) -> tuple[str, ...]:
    """A note on the linears that a checkpoint left as they were: they are not in bpw."""
    left = [t for t in rest if len(t.shape) == 2 and t.name.endswith(".weight") and not t.is_embedding]
    if not left:
        return ()
    names = ", ".join(t.name.removesuffix(".weight") for t in left[:_NAMED])
    more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
    kinds = "/".join(sorted({t.dtype for t in left}))
    n = len(packed) + len(left)
    return (f"{len(left)} of {n} linears left as {kinds}, not counted in bpw: {names}{more}",)


def _not_linear(packed: list[PackedLinear], rest: Iterable[Tensor]) -> tuple[str, ...]:
    body = [t for t in rest if not t.is_embedding]
    n_packed = sum(p.n_weights for p in packed if not is_embedding(p.name))
    n_left = sum(t.n_elements for t in body if len(t.shape) == 2)
    return unquantized_note(n_packed + n_left, n_packed + sum(t.n_elements for t in body))
