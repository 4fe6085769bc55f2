"""Which packed format a model folder is in, and what it needs to run (torch-free).

A format is named by ``quantization_config`` in config.json, or in AutoGPTQ's quantize_config.json, or
has a file of its own. docs/formats.md is the list.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qeval.core.artifact import Artifact, Format, ModelRef
from qeval.core.errors import ModelError, UsageError, did_you_mean, raise_all
from qeval.core.extras import require
from qeval.formats.base import formats, registered
from qeval.models.config import read_json
from qeval.models.tensors import Tensor, is_plausible
from qeval.models.weights import read_tensors


def recognise(folder: Path) -> Format | None:
    """The format of a model folder; None where its weights are floats.

    Raises:
        ModelError: a format that is not known, or a configuration that contradicts itself; with the
            file, the key and what is known.
    """
    known = formats()
    for one in known:
        if one.file is not None and (folder / one.file).is_file():
            return one.read(folder / one.file, {})
    file, config = _quantization_config(folder)
    if not config:
        return None
    name = config.get("quant_method")
    of = {method: one for one in reversed(known) for method in one.quant_methods}
    if not isinstance(name, str) or name not in of:
        raise ModelError(
            f"{file}: quant_method {name!r} is none that qeval runs{did_you_mean(str(name), of)}"
        )
    return of[name].read(file, config)


def rounds_activations(artifact: Artifact) -> bool:
    """Whether the kernels of a packed model quantize activations, too."""
    found = artifact.format
    return found is not None and registered(found).rounds_activations(found)


def check_runs(artifact: Artifact, model: ModelRef) -> None:
    """What a packed artifact needs of this machine and of the spec, before any job.

    Raises:
        MissingExtraError: a package of its format is not installed; with the command.
        UsageError: a dtype that its kernels do not compute in.
    """
    found = artifact.format
    if found is not None:
        raise_all(
            lambda: require(found.extra, *found.modules),
            lambda: registered(found).check_model(found, model),
        )


def check_device(artifact: Artifact, device: str) -> None:
    """Raises UsageError for a packed artifact that ``device`` (cpu or cuda) cannot run."""
    found = artifact.format
    if found is not None:
        registered(found).check_device(found, artifact.layers, device)


def check_float(method: str, model: ModelRef) -> None:
    """Raises UsageError where a method is to quantize a model that is packed already, ModelError where
    its weights are none that can be quantized."""
    found = recognise(model.path) if model.path.is_dir() else None
    if found is None and model.path.is_dir():
        check_floats(model.path, read_tensors(model.path))
    if found is not None:
        raise UsageError(
            f"{method}: {model.id} is packed already ({found.label}): it needs the float model; "
            "none and checkpoint take packed ones as they are"
        )


def _quantization_config(folder: Path) -> tuple[Path, dict[str, object]]:
    """The file that has it and its content, {} where there is none. GPTQModel reads
    quantize_config.json before config.json: the two must agree.

    Raises:
        ModelError: the files are not JSON objects, or disagree.
    """
    main, beside = folder / "config.json", folder / "quantize_config.json"
    config = read_json(main)
    inner = config.get("text_config")
    found = config.get("quantization_config") or config.get("compression_config")
    if not found and isinstance(inner, dict):
        found = inner.get("quantization_config")
    found = found or {}
    if not isinstance(found, dict):
        raise ModelError(f"{main}: quantization_config must be a mapping")
    if not beside.is_file():
        return main, found
    other = read_json(beside)
    if not found:
        unnamed = next(one for one in formats() if one.unnamed)
        return beside, {"quant_method": unnamed.quant_methods[0], **other}
    for key in ("bits", "group_size", "desc_act", "sym", "quant_method", "checkpoint_format"):
        if key in found and key in other and found[key] != other[key]:
            raise ModelError(
                f"{beside}: {key} is {other[key]!r}, but {found[key]!r} in config.json: "
                "delete the one that is wrong"
            )
    return main, {**other, **found}


def check_floats(path: Path, tensors: Sequence[Tensor]) -> None:
    """What a model folder without a quantization_config holds.

    Raises:
        ModelError: packed weights, or weights in a type that is no float: libraries turn such numbers
            into floats, whatever they were.
    """
    packed = tuple(suffix for one in formats() for suffix in one.unmistakable)
    for t in tensors:
        if t.name.endswith(packed):
            raise ModelError(
                f"{path}: {t.name} is packed, but config.json has no quantization_config to say how: "
                "take the one that came with these weights"
            )
        if not is_plausible(t):
            raise ModelError(
                f"{t.file}: {t.name} is {t.dtype}, and weights are floats: its header is false, or "
                "config.json lacks the quantization_config that says how they are packed"
            )
