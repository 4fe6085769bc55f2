"""What weight files hold, read without torch: names, shapes, sizes, damage.

A safetensors file is 8 bytes of header length, a JSON header with each tensor's dtype, shape and byte
range, then the data (https://github.com/huggingface/safetensors#format). PyTorch's own files are read
by torch_file.py.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qeval.core.errors import ModelError, short
from qeval.core.files import parse_json, read_bytes
from qeval.core.units import human_bytes
from qeval.models.routers import routers
from qeval.models.tensors import Contents, Tensor

_MAX_HEADER = 2**25  # bytes; the format allows 100 MB, which take gigabytes as JSON values
_MAX_INDEX = 2**25
_MAX_SMALL = 2**24  # bytes of a tensor that holds a shape, a state, a bias
_LONGEST_NAME = 255  # bytes of a file's name
_MAX_DIMS = 64  # torch's own
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}


def read_header(path: Path) -> list[Tensor]:
    """The tensors of one safetensors file.

    Raises:
        ModelError: the file is not one, or its length or byte ranges are not what its header says.
    """
    return _read_safetensors(path).tensors


def _read_safetensors(path: Path) -> Contents:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else _MAX_HEADER + 1
        if length > size:
            raise ModelError(f"{path}: not a safetensors file, or cut off in its header")
        if length > _MAX_HEADER:
            most = human_bytes(_MAX_HEADER)
            raise ModelError(f"{path}: a safetensors header of over {most}: damaged; copy it again")
        try:
            header: dict[str, Any] = json.loads(file.read(length), object_pairs_hook=_object)
        except KeyError as err:
            raise ModelError(f"{path}: {err} is in its safetensors header twice: damaged") from err
        except (ValueError, RecursionError) as err:
            raise ModelError(f"{path}: its safetensors header is not JSON; copy it again") from err
    try:
        facts = header.pop("__metadata__", None) or {}
        if not isinstance(facts, dict):
            raise TypeError("the metadata is a mapping")
        tensors = [_entry(name, entry, path, 8 + length) for name, entry in header.items()]
        _check_ranges(path, tensors, 8 + length, size)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as err:
        raise ModelError(f"{path}: its safetensors header is damaged; copy the file again") from err
    return Contents(tensors, facts)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object. Raises KeyError for a name that is there twice: a dictionary keeps the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise KeyError(Counter(name for name, _ in pairs).most_common(1)[0][0])
    return found


def _entry(name: str, entry: dict[str, Any], path: Path, start: int) -> Tensor:
    """One tensor of a header, whose data begins at ``start``.

    Raises:
        ValueError, KeyError, TypeError: it is not written as the format says.
    """
    shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    if len(shape) > _MAX_DIMS or not name.isprintable():
        raise ValueError("no tensor's shape or name")
    if not all(type(n) is int and 0 <= n < 2**63 for n in (*shape, begin, end)):
        raise ValueError("not whole numbers from 0 on")
    if not isinstance(entry["dtype"], str):
        raise TypeError("a dtype is a string")
    return Tensor(name, entry["dtype"], shape, end - begin, path, start + begin)


def _check_ranges(path: Path, tensors: list[Tensor], start: int, size: int) -> None:
    """Tensors follow each other, each as long as its shape, the last one up to the end."""
    for t in tensors:
        bits = _BITS.get(t.dtype)  # a dtype from later than this list has no size to check
        if t.n_bytes < 0 or (bits and t.n_bytes * 8 != t.n_elements * bits):
            raise ModelError(
                f"{path}: {t.name} {t.dtype} {list(t.shape)} has {t.n_bytes} bytes: damaged; "
                "download or copy it again"
            )
    end = start
    for t in sorted(tensors, key=lambda t: (t.offset, t.n_bytes)):
        if t.offset != end:
            raise ModelError(f"{path}: {t.name} does not begin where the one before it ends: damaged")
        end += t.n_bytes
    if size < end:
        raise ModelError(f"{path}: truncated: {size} bytes of {end}; download or copy it again")
    if size > end:
        raise ModelError(f"{path}: {size - end} bytes too long: damaged; download or copy it again")


def weight_files(folder: Path) -> list[Path]:
    """The weight files that transformers would load: safetensors, else .bin; then those of AutoGPTQ
    and hqq, which only their libraries load. Checked for gaps.

    Raises:
        ModelError: there is none, or the index names a shard that is not there.
    """
    for single in ("model.safetensors", "pytorch_model.bin"):
        if (folder / single).is_file():
            return [folder / single]
        index = f"{single}.index.json"
        if (folder / index).is_file():
            names = _shards(folder / index)
            gone = [n for n in names if not (folder / n).is_file()]
            if gone:
                raise ModelError(f"{folder}: the shard {gone[0]} named by {index} is missing")
            return [folder / n for n in names]
    others = [*folder.glob("gptq_model-*bit-*g.safetensors"), *folder.glob("qmodel.pt")]
    others = others or [*folder.glob("gptq_model-*bit-*g.bin")]
    if len(others) == 1:
        return others
    raise ModelError(f"{folder}: no weights (model.safetensors, its index, or pytorch_model.bin)")


def _shards(index: Path) -> list[str]:
    """The names of the shards, all of them files of the folder itself."""
    data = parse_json(read_bytes(index, _MAX_INDEX, ModelError), str(index), ModelError)
    try:
        names = sorted(set(data["weight_map"].values()))
    except (KeyError, TypeError, AttributeError) as err:
        raise ModelError(f"{index}: not an index of shards (JSON with a weight_map)") from err
    for name in names:
        if not isinstance(name, str) or not _is_file_name(name):
            raise ModelError(
                f"{index}: weight_map: {short(repr(name))} is no file of this folder: put the shard "
                "there and name it"
            )
    if not names:
        raise ModelError(f"{index}: weight_map names no shard")
    return names


def _is_file_name(name: str) -> bool:
    return (
        name.isprintable()
        and name not in ("", ".", "..")
        and "/" not in name
        and len(name.encode()) <= _LONGEST_NAME
    )


def linear_shapes(folder: Path) -> dict[str, tuple[int, int]]:
    """The float linears of a folder that a method quantizes, by name: [out_features, in_features] of
    every two-dimensional weight that is not an embedding, a head or a router. GPT-2's are stored the
    other way round, which their biases show."""
    tensors = read_tensors(folder)
    left, turned = routers({t.name: t.shape for t in tensors}), _turned(tensors)
    found = {}
    for t in tensors:
        name = t.name.removesuffix(".weight")
        if len(t.shape) == 2 and name != t.name and not t.is_embedding and name not in left:
            found[name] = (t.shape[1], t.shape[0]) if name in turned else (t.shape[0], t.shape[1])
    return found


def turned_linears(folder: Path) -> list[str]:
    """The linears that a folder stores as [in_features, out_features], which transformers' Conv1D does
    (GPT-2), by name; square ones do not show it."""
    return _turned(read_tensors(folder))


def _turned(tensors: Iterable[Tensor]) -> list[str]:
    shapes = {t.name: t.shape for t in tensors}
    return [
        name.removesuffix(".bias")
        for name, bias in shapes.items()
        if name.endswith(".bias") and len(shape := shapes.get(f"{name[:-5]}.weight", ())) == 2
        if (shape[1],) == bias != (shape[0],)
    ]


def read_tensors(folder: Path) -> list[Tensor]:
    """All tensors of a model folder, what several names share once.

    Raises:
        ModelError: weights are missing, damaged, or hold more than tensors.
    """
    return read_contents(folder).tensors


def read_contents(folder: Path) -> Contents:
    """``read_tensors``, and what the files say beside the tensors."""
    from qeval.models.torch_file import read_torch_file

    found = Contents([], {})
    of: dict[str, Path] = {}
    for file in weight_files(folder):
        part = _read_safetensors(file) if file.suffix == ".safetensors" else read_torch_file(file)
        if twice := next((t.name for t in part.tensors if t.name in of), None):
            raise ModelError(
                f"{folder}: {twice} is in {of[twice].name} and in {file.name}: take it out of one"
            )
        of |= dict.fromkeys((t.name for t in part.tensors), file)
        found.tensors.extend(part.tensors)
        found.facts.update(part.facts)
    if not found.tensors:
        raise ModelError(f"{folder}: its weight files hold no tensor: copy them again")
    return found


def read_data(tensor: Tensor) -> bytes:
    """The bytes of one small tensor. Raises ModelError where it is not small."""
    if tensor.n_bytes > _MAX_SMALL:
        most = human_bytes(_MAX_SMALL)
        raise ModelError(
            f"{tensor.file}: {tensor.name} has {tensor.n_bytes} bytes, over {most}: damaged"
        )
    with tensor.file.open("rb") as file:
        file.seek(tensor.offset)
        return file.read(tensor.n_bytes)
