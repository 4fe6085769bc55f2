"""What a PyTorch file (``.bin``, ``.pt``) holds, read without torch and without running anything of it.

Since PyTorch 1.6 such a file is a zip archive: ``NAME/data.pkl``, a pickle of the structure, and
``NAME/data/KEY``, the bytes of each storage. A pickle can call anything; this reader knows the few
functions that make tensors, as plain records, and refuses a file that names any other
(https://docs.pytorch.org/docs/stable/notes/serialization.html).
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from qeval.core.errors import ModelError, reason
from qeval.models.tensors import Contents, Tensor

_STORAGES = {
    "BoolStorage": "BOOL",
    "ByteStorage": "U8",
    "CharStorage": "I8",
    "ShortStorage": "I16",
    "IntStorage": "I32",
    "LongStorage": "I64",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
    "UntypedStorage": "U8",
}
_DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
}
_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2} | {
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}
_SMALL_INT = re.compile(r"u?int[1-7]$")
_MAX_PICKLE = 2**26
_MAX_STEPS = 4_000_000  # of a pickle: each may make an empty list, or worse
_MAX_VALUES, _MAX_DEPTH = 1_000_000, 16  # a pickle can hold a tree in itself, over and over
_MAX_FLAT = 64  # values of a tuple or list that is no tensor: a shape, a list of options


def read_torch_file(path: Path) -> Contents:
    """The tensors of a PyTorch file by dotted name, and the plain values beside them.

    A tensor subclass (torchao) gives the tensors inside it, named ``X._weight_qdata`` for the attribute
    ``qdata`` of ``X.weight``, and a fact ``X.weight``: {"_type": class, "_data": attributes}. Names
    that share one storage are there once.

    Raises:
        ModelError: cut off, damaged, from before PyTorch 1.6, or with code in it.
    """
    with path.open("rb") as file:
        if file.read(2) == b"\x80\x02":
            raise ModelError(
                f"{path}: in PyTorch's format from before 1.6: load it in torch, save as safetensors"
            )
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(path, archive)
    except ModelError:
        raise
    except Exception as err:  # a torn archive may fail in any way, too
        raise ModelError(
            f"{path}: cut off, or no PyTorch file ({reason(err)}); download or copy it again"
        ) from err


def _read(path: Path, archive: zipfile.ZipFile) -> Contents:
    members = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1 or members[pickles[0]].file_size > _MAX_PICKLE:
        raise ModelError(f"{path}: no PyTorch file (a zip archive with one NAME/data.pkl)")
    prefix = pickles[0].removesuffix("data.pkl")
    try:
        root = _Unpickler(archive.read(pickles[0])).load()
        found = list(_walk("", root, [0], 0))
    except _NotATensor as err:
        raise ModelError(
            f"{path}: holds code ({err}), not only tensors: convert it to safetensors, "
            "if you trust where it comes from"
        ) from None
    except Exception as err:  # a hostile or torn pickle may fail in any way
        raise ModelError(f"{path}: its data.pkl is damaged ({type(err).__name__})") from err
    tensors: list[Tensor] = []
    claimed: dict[str, int] = {}  # bytes of each storage that the tensors so far account for
    for name, record in found:
        if not isinstance(record, _TensorRecord):
            continue
        info = members.get(f"{prefix}data/{record.storage.key}")
        tensor = _placed(path, name, record, info)
        used = claimed.get(record.storage.key, 0) + tensor.n_bytes
        if used <= record.storage.n_bytes:  # else another name of what is there already
            claimed[record.storage.key] = used
            tensors.append(tensor)
    return Contents(tensors, {name: v for name, v in found if not isinstance(v, _TensorRecord)})


def _placed(path: Path, name: str, record: _TensorRecord, info: zipfile.ZipInfo | None) -> Tensor:
    """The tensor with the place of its data.

    Raises:
        ModelError: its storage is not there, of another size, or too small for it.
    """
    width, storage = _BYTES[record.dtype], record.storage
    reach = sum((n - 1) * abs(s) for n, s in zip(record.shape, record.stride, strict=True)) + 1
    n_elements = math.prod(record.shape)
    end = (record.start + reach) * width if n_elements else 0
    if info is None or info.file_size != storage.n_bytes or end > storage.n_bytes:
        raise ModelError(
            f"{path}: the data of {name} is missing or of another size: damaged; copy it again"
        )
    if info.compress_type != zipfile.ZIP_STORED:
        raise ModelError(
            f"{path}: its data is compressed: load it with torch and save it as safetensors"
        )
    with path.open("rb") as file:  # the data follows the member's own header
        file.seek(info.header_offset + 26)
        lengths = struct.unpack("<HH", file.read(4))
    start = info.header_offset + 30 + sum(lengths) + record.start * width
    return Tensor(name, record.dtype, record.shape, n_elements * width, path, start)


class _NotATensor(Exception):
    """A pickle names something that is not part of a tensor."""


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str
    n_bytes: int


@dataclass(frozen=True)
class _TensorRecord:
    storage: _Storage
    dtype: str
    start: int  # in elements
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass
class _Object:
    """An instance of a tensor subclass, or of a class of its options: what it would be made of."""

    kind: str
    args: tuple[object, ...] = ()
    state: dict[str, object] = field(default_factory=dict)

    def __setstate__(self, state: object) -> None:
        self.state = state if isinstance(state, dict) else {}


class _Callable:
    """What a pickle may call. It takes no state, so that no pickle changes what the next one calls."""

    __slots__ = ("_make", "name")

    def __init__(self, name: str, make: Callable[..., object]) -> None:
        self.name, self._make = name, make

    def __call__(self, *args: object) -> object:
        return self._make(*args)

    def __setstate__(self, state: object) -> None:
        raise _NotATensor(f"state for {self.name}")


# What is passed to these comes from the file, and may be anything.


def _tensor(storage: object, start: object, shape: object, stride: object, *_: object) -> _TensorRecord:
    dtype = storage.dtype if isinstance(storage, _Storage) else None
    return _checked(storage, dtype, start, shape, stride)


def _tensor_v3(
    storage: object,
    start: object,
    shape: object,
    stride: object,
    _grad: object,
    _hooks: object,
    dtype: object,
    *_: object,
) -> _TensorRecord:
    return _checked(storage, dtype, start, shape, stride)


def _checked(
    storage: object, dtype: object, start: object, shape: object, stride: object
) -> _TensorRecord:
    """Raises ValueError for anything that is not a storage and whole numbers from 0 on."""
    if not isinstance(storage, _Storage) or not isinstance(dtype, str) or dtype not in _BYTES:
        raise ValueError("not a tensor")
    [first], sizes, steps = _whole((start,)), _whole(shape), _whole(stride)
    if len(sizes) != len(steps):
        raise ValueError("not a tensor")
    return _TensorRecord(storage, dtype, first, sizes, steps)


def _whole(numbers: object) -> tuple[int, ...]:
    """Raises ValueError for anything but a row of whole numbers from 0 on."""
    if not isinstance(numbers, tuple | list) or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError("not a tensor")
    return tuple(numbers)


def _typed(make: object, kind: object, args: object, state: object) -> object:
    """``torch._tensor._rebuild_from_type_v2``: a tensor, or a tensor subclass with its attributes."""
    if not isinstance(make, _Callable) or not isinstance(args, tuple):
        raise ValueError("not a tensor")
    made = make(*args)
    if isinstance(made, _Object):
        attributes = state[0] if isinstance(state, tuple) else state
        if not isinstance(kind, _Callable) or not isinstance(attributes, dict):
            raise ValueError("not a tensor")
        return _Object(kind.name, made.args, dict(attributes))
    return made


_FUNCTIONS: dict[str, Callable[..., object]] = {
    "collections.OrderedDict": OrderedDict,
    "torch.Size": tuple,
    "torch.device": lambda *args: ":".join(map(str, args)),
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
    "torch._utils._rebuild_wrapper_subclass": lambda *args: _Object("", args),
    "torch._tensor._rebuild_from_type_v2": _typed,
    "torch.serialization._get_layout": str,
    "torch.nn.parameter.Parameter": lambda tensor, *_: tensor,
}


def _counted(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def step(self: Any) -> None:  # an _Unpickler, which the stubs take for the one in C
        self.steps += 1
        if self.steps > _MAX_STEPS:
            raise ValueError("too many steps")
        load(self)

    return step


class _Unpickler(pickle._Unpickler):
    """The one in Python: that in C makes room for as many memo entries as a number in the file says."""

    # Sets take more memory for a byte of the file than anything else, and no checkpoint has them.
    dispatch: ClassVar = {
        code: _counted(load)
        for code, load in pickle._Unpickler.dispatch.items()
        if code not in (pickle.EMPTY_SET[0], pickle.FROZENSET[0])
    }

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.steps = 0

    def find_class(self, module: str, name: str) -> object:
        full = f"{module}.{name}"
        if full in _FUNCTIONS:
            return _Callable(full, _FUNCTIONS[full])
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and (name in _DTYPES or _SMALL_INT.match(name)):
            return _DTYPES.get(name, name)
        if module.split(".")[0] == "torchao":
            return _Callable(name, lambda *args: _Object(name, args))
        raise _NotATensor(full)

    def persistent_load(self, pid: object) -> _Storage:
        if not isinstance(pid, tuple):
            raise ValueError("not a reference")
        what, dtype, key, _, n = pid
        if what != "storage" or not isinstance(dtype, str) or dtype not in _BYTES:
            raise _NotATensor(f"a reference to {what!r}")
        return _Storage(dtype, str(key), int(n) * _BYTES[dtype])


def _is_plain(value: object) -> bool:
    """A scalar, or a short row of scalars: what holds other rows may hold itself a billion times."""
    scalar = (str, int, float, bool)
    if isinstance(value, tuple | list):
        return len(value) <= _MAX_FLAT and all(isinstance(v, scalar) for v in value)
    return isinstance(value, scalar)


def _walk(name: str, value: object, seen: list[int], depth: int) -> Iterator[tuple[str, object]]:
    """Tensors and plain values by dotted name. ``seen``: how many values so far."""
    seen[0] += 1
    if seen[0] > _MAX_VALUES or depth > _MAX_DEPTH:
        raise ValueError("too many values")
    if isinstance(value, _TensorRecord) or (_is_plain(value) and not isinstance(value, list)):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _walk(f"{name}.{key}" if name else str(key), inner, seen, depth + 1)
    elif isinstance(value, _Object):
        stem = name.removesuffix(".weight")
        for key, inner in value.state.items():
            if isinstance(inner, _TensorRecord | _Object):
                yield from _walk(f"{stem}._weight_{key}", inner, seen, depth + 1)
        attributes = {k: v for k, v in value.state.items() if _is_plain(v)}
        if len(value.args) > 2 and _is_plain(value.args[2]):
            attributes["shape"] = value.args[2]  # of the whole
        yield name, {"_type": value.kind, "_data": attributes}
