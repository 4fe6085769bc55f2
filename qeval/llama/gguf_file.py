"""Read the header of a ``.gguf`` file: metadata, and name, shape, type and stored bytes of each tensor.

Format: ggml's docs/gguf.md, versions 2 and 3, little-endian. The ``gguf`` package's own reader makes
one array per string (seconds for a vocabulary) and lacks llama.cpp's newest types; this one skips
vocabularies, and needs nothing installed: the parent process describes checkpoints with it.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from qeval.core.errors import ModelError, short

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LONGEST_ARRAY = 4096  # per-layer numbers are kept, vocabularies are not
_MOST = 100_000  # tensors, and metadata values
_MOST_DIMS = 4  # ggml's own
_MOST_STRINGS = 2**23  # of all vocabularies and merges
_MOST_PARTS = 99_999  # five digits in their names
_SIZES = {  # of a model, and the most that is believed
    "block_count": 10_000,
    "context_length": 2**31,
    "embedding_length": 2**24,
    "attention.head_count": 2**20,
    "attention.head_count_kv": 2**20,
    "attention.key_length": 2**20,
    "attention.value_length": 2**20,
}
_MOST_KEPT, _MOST_SKIPPED = 2**25, 2**30  # bytes of the header

# ggml.h's enum ggml_type: name, weights per block, bytes per block.
GGML_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}

_BLOCKS = {name: block for name, block, _ in GGML_TYPES.values()}
_INTEGERS = ("I8", "I16", "I32", "I64")
_EMBEDDINGS = (
    *("token_embd.weight", "output.weight", "per_layer_token_embd.weight"),
    *("position_embd.weight", "token_types.weight"),
)
_TABLE = "ffn_gate_tid2eid"  # DeepSeek-V4: the experts of each token, whole numbers
# As in llama.cpp's tensor_allows_quantization: routers, tables, convolutions over a few tokens.
_NEVER_QUANTIZED = ("ffn_gate_inp", _TABLE, "ssm_conv1d", "shortconv.conv")


@dataclass(frozen=True)
class GgufTensor:
    name: str
    shape: tuple[int, ...]  # as in torch: [out_features, in_features]; the file has it reversed
    kind: str  # "Q4_K", "F32", ...
    n_bytes: int
    file: Path = field(default=Path(), compare=False)
    offset: int = field(default=0, compare=False)  # where its data begins in the file

    @property
    def n_params(self) -> int:
        return prod(self.shape)

    @property
    def is_embedding(self) -> bool:
        """Embeddings of tokens and positions, or output head."""
        return self.name in _EMBEDDINGS

    @property
    def is_linear(self) -> bool:
        """A weight matrix of a block (or a stack of experts), which a quantization is about: no router,
        no small convolution."""
        is_matrix = len(self.shape) > 1 and self.name.endswith(".weight") and not self.is_embedding
        return is_matrix and not any(part in self.name for part in _NEVER_QUANTIZED)


@dataclass(frozen=True)
class Header:
    metadata: dict[str, Any]  # scalars, strings, and arrays of numbers up to 4096 long
    tensors: tuple[GgufTensor, ...]

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    def get(self, key: str, default: object = None) -> Any:
        """The value of ``<architecture>.<key>``."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    @property
    def weight_bytes(self) -> int:
        """Stored bytes of everything but token embeddings and output head."""
        return sum(t.n_bytes for t in self.tensors if not t.is_embedding)

    @property
    def embedding_bytes(self) -> int:
        return sum(t.n_bytes for t in self.tensors if t.is_embedding)

    def kv_bytes(self, context: int) -> int:
        """Bytes of the f16 K and V of one sequence: 2 * context * sum over layers of
        head_count_kv * (key_length + value_length).

        Layers without attention count 0. A sliding window saves nothing: qeval runs llama.cpp with its
        default full-size cache (``swa_full``).
        """
        heads = _per_layer(self.get("attention.head_count", 0), self.get("block_count", 0))
        kv_heads = _per_layer(self.get("attention.head_count_kv", heads), self.get("block_count", 0))
        one_head = self.get("embedding_length", 0) // max(1, *heads)
        key = self.get("attention.key_length", one_head)
        value = self.get("attention.value_length", one_head)
        return int(2 * context * sum(kv_heads) * (key + value))


def _per_layer(value: int | list[int], n_layers: int) -> list[int]:
    return value if isinstance(value, list) else [value] * n_layers


def read_header(path: Path) -> Header:
    """The header of ``path``; the first part of a split model stands for all of its parts.

    Raises:
        ModelError: the file is not GGUF version 2 or 3, cut off, or its header contradicts itself; it
            is not the first part; another part is missing, or not of this model.
    """
    header = _read_one(path)
    parts = _other_parts(path, header.metadata)  # first: parts but the first name no architecture
    _check_model(path, header.metadata)
    tensors = list(header.tensors)
    for number, part in enumerate(parts, 2):
        other = _read_one(part)
        if (other.metadata.get("split.no"), other.metadata.get("split.count")) != (
            number - 1,
            len(parts) + 1,
        ):
            raise ModelError(f"{part}: is not part {number} of {len(parts) + 1}, by its header")
        tensors += other.tensors
    wanted = header.metadata.get("split.tensors.count", len(tensors)) if parts else len(tensors)
    if wanted != len(tensors):
        raise ModelError(
            f"{path}: its parts hold {len(tensors)} tensors, not {wanted}: one is of another model"
        )
    _check_once(path, [t.name for t in tensors])
    return Header(header.metadata, tuple(tensors))


def _check_model(path: Path, metadata: dict[str, object]) -> None:
    """Raises ModelError for a header that is not a model's, or gives a false size: what counts layers,
    heads and bytes would believe it."""
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise ModelError(f"{path}: no general.architecture: not a model; get it again")
    for key, most in _SIZES.items():
        value = metadata.get(f"{architecture}.{key}", 0)
        values = value if isinstance(value, list) and key.startswith("attention.") else [value]
        if not all(type(n) is int and 0 <= n <= most for n in values):
            shown = short(repr(value))
            raise ModelError(f"{path}: {architecture}.{key} is {shown}: damaged; get it again")


def all_parts(path: Path) -> list[Path]:
    """``path`` and the other parts of a split model.

    Raises:
        ModelError: ``path`` is not the first of them, or one is missing.
    """
    return [path, *_other_parts(path, _read_one(path).metadata)]


def _other_parts(path: Path, metadata: dict[str, object]) -> list[Path]:
    """Those of ``name-00001-of-00003.gguf``, as llama.cpp looks for them (``llama_split_path``)."""
    count, number = metadata.get("split.count", 1), metadata.get("split.no", 0)
    if type(count) is not int or type(number) is not int or count <= 1:
        return []
    if count > _MOST_PARTS or not 0 <= number < count:
        raise ModelError(f"{path}: part {number + 1} of {count}, by its header: damaged; get it again")
    ending = f"-{number + 1:05d}-of-{count:05d}.gguf"
    named = [
        path.with_name(path.name.removesuffix(ending) + f"-{i:05d}-of-{count:05d}.gguf")
        for i in range(1, count + 1)
    ]
    if number:
        first = f", {named[0]}" if path.name.endswith(ending) else ""
        raise ModelError(f"{path}: part {number + 1} of {count}: give the first part{first}")
    if path != named[0]:
        raise ModelError(
            f"{path}: the first of {count} parts, which llama.cpp finds by their names: call it "
            f"{path.stem}{ending}, and the others like it"
        )
    for i, part in enumerate(named[1:], 2):
        if not part.is_file():
            raise ModelError(f"{path}: its part {i} of {count} is missing: {part}")
    return named[1:]


def _check_once(path: Path, names: list[str]) -> None:
    """Raises ModelError for a name that is there twice: readers take the one or the other."""
    if len(set(names)) < len(names):
        name = Counter(names).most_common(1)[0][0]
        raise ModelError(f"{path}: {name} is in its header twice: damaged")


def _read_one(path: Path) -> Header:
    try:
        with path.open("rb") as file:
            magic, version, n_tensors, n_values = struct.unpack("<4sIQQ", file.read(24))
            if magic != b"GGUF" or version not in (2, 3):
                raise ModelError(f"{path}: is not a GGUF file of version 2 or 3")
            for count, what in ((n_tensors, "tensors"), (n_values, "metadata values")):
                if count > _MOST:
                    raise _OverLimit(f"{count:,} {what}", _MOST)
            header = _HeaderReader(file)
            values = [(_string(header), _value(header)) for _ in range(n_values)]
            tensors = [_tensor(header) for _ in range(n_tensors)]
            header_ends = file.tell()
    except _OverLimit as err:
        raise ModelError(f"{path}: its header has {err}: damaged; get it again") from err
    except OSError as err:
        raise ModelError(f"{path}: cannot be read ({err.strerror})") from err
    except (struct.error, KeyError) as err:
        raise ModelError(f"{path}: the GGUF header is cut off or damaged") from err
    _check_once(path, [name for name, _ in values])
    metadata = dict(values)
    alignment = metadata.get("general.alignment", 32)
    _check_tensors(path, tensors, alignment, header_ends)
    start = -(-header_ends // alignment) * alignment
    placed = (replace(t, file=path, offset=start + offset) for t, offset in tensors)
    return Header(metadata, tuple(placed))


def _check_tensors(
    path: Path, tensors: list[tuple[GgufTensor, int]], alignment: int, header_ends: int
) -> None:
    """Raises ModelError where the tensors do not follow each other inside the file, are of a shape that
    their type cannot hold, or are weights in integers, which no operation takes."""
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise ModelError(f"{path}: general.alignment is {alignment!r}: damaged")
    end = 0  # from the start of all data
    for t, offset in tensors:
        if t.kind in _INTEGERS and t.name.endswith((".weight", ".bias")) and _TABLE not in t.name:
            raise ModelError(f"{path}: {t.name} is {t.kind}, and weights are floats: a false header")
        if t.shape and t.shape[-1] % _BLOCKS[t.kind]:
            raise ModelError(
                f"{path}: {t.name} {t.kind} {list(t.shape)}: rows are not whole blocks: damaged"
            )
        if offset != end:
            raise ModelError(f"{path}: {t.name} does not begin where the one before it ends: damaged")
        end += -(-t.n_bytes // alignment) * alignment
    needed = -(-header_ends // alignment) * alignment
    needed += tensors[-1][1] + tensors[-1][0].n_bytes if tensors else 0
    size = path.stat().st_size
    if tensors and size < needed:
        raise ModelError(f"{path}: truncated: {size} bytes of {needed}; get it again")


class _OverLimit(Exception):
    """A number in a header is none that any model has."""

    def __init__(self, found: str, most: int) -> None:
        super().__init__(f"{found}, and the most is {most:,}")


class _HeaderReader:
    """Reads a header and keeps to the limits: what its numbers announce need not be there, and neither
    time nor memory may follow them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._skipped = self._kept = self._strings = 0

    def take(self, size: int) -> bytes:
        """Bytes that are kept."""
        self._kept += size
        if self._kept > _MOST_KEPT:
            raise _OverLimit(f"a value of {size:,} bytes", _MOST_KEPT)
        raw = self._file.read(size)
        if len(raw) < size:
            raise struct.error("ends early")
        return raw

    def skip(self, size: int) -> None:
        self._skipped += size
        if self._skipped > _MOST_SKIPPED:
            raise _OverLimit(f"an array of {size:,} bytes", _MOST_SKIPPED)
        self._file.seek(size, 1)

    def skip_strings(self, count: int) -> None:
        self._strings += count
        if self._strings > _MOST_STRINGS:
            raise _OverLimit(f"an array of {count:,} strings", _MOST_STRINGS)
        for _ in range(count):
            raw = self._file.read(8)
            self.skip(struct.unpack("<Q", raw)[0])


def _read(file: _HeaderReader, code: str, count: int = 1) -> tuple[Any, ...]:
    layout = f"<{count}{code}"
    return struct.unpack(layout, file.take(struct.calcsize(layout)))


def _string(file: _HeaderReader) -> str:
    (size,) = _read(file, "Q")
    return file.take(size).decode("utf-8", "replace")


def _value(file: _HeaderReader) -> Any:
    (kind,) = _read(file, "I")
    if kind == _STRING:
        return _string(file)
    if kind == _ARRAY:
        return _array(file)
    return _read(file, _SCALARS[kind])[0]


def _array(file: _HeaderReader) -> list[object] | None:
    kind, count = _read(file, "I") + _read(file, "Q")
    if kind == _STRING:
        file.skip_strings(count)
        return None
    if count > _LONGEST_ARRAY:
        file.skip(count * struct.calcsize(_SCALARS[kind]))
        return None
    return list(_read(file, _SCALARS[kind], count))


def _tensor(file: _HeaderReader) -> tuple[GgufTensor, int]:
    """A tensor and where its data begins, from the start of all data."""
    name = _string(file)
    if not name.isprintable():
        raise struct.error("no tensor's name")
    (n_dims,) = _read(file, "I")
    if n_dims > _MOST_DIMS:
        raise _OverLimit(f"a tensor of {n_dims:,} dimensions", _MOST_DIMS)
    shape = tuple(reversed(_read(file, "Q", n_dims)))
    number, offset = _read(file, "I") + _read(file, "Q")
    kind, block, block_bytes = GGML_TYPES[number]
    return GgufTensor(name, shape, kind, prod(shape) // block * block_bytes), offset
