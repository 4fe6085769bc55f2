"""The reader of GGUF headers against the installed library, and against files cut anywhere."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import struct
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf_files import split
from hypothesis import given, settings
from hypothesis import strategies as st

from qeval.core.errors import ModelError, QevalError
from qeval.core.settings import EngineSettings
from qeval.engines.llamacpp import LlamaCppEngine
from qeval.formats.gguf import describe_gguf
from qeval.llama.gguf_file import GGML_TYPES, all_parts, read_header
from qeval.models.resolve import identify, resolve_model

pytest.importorskip("llama_cpp")


def test_the_table_of_types_is_that_of_the_installed_library():
    from qeval.llama.library import library

    lib = library().llama_cpp._lib
    lib.ggml_type_name.restype = ctypes.c_char_p
    lib.ggml_blck_size.restype = ctypes.c_int64
    lib.ggml_type_size.restype = ctypes.c_size_t
    installed = {
        i: (lib.ggml_type_name(i).decode().upper(), lib.ggml_blck_size(i), lib.ggml_type_size(i))
        for i in range(43)
        if lib.ggml_type_size(i)
    }
    assert installed == GGML_TYPES


@pytest.mark.parametrize("kind", ["empty", "text", "header", "cut"])
def test_the_header_of_a_broken_file_is_refused(tiny_f32, tmp_path, damage, kind):
    with pytest.raises(ModelError):
        read_header(damage(kind, tiny_f32.path, tmp_path / "model.gguf"))


@settings(max_examples=100, deadline=None)
@given(end=st.integers(0, 40_000))
def test_a_file_cut_anywhere_is_a_clear_error(tiny_f32, tmp_path_factory, end):
    path = tmp_path_factory.getbasetemp() / "cut.gguf"
    path.write_bytes(tiny_f32.path.read_bytes()[:end])
    with pytest.raises(QevalError):
        read_header(path)


_NUMBERS = {name: number for number, (name, _, _) in GGML_TYPES.items()}
_U16, _U32, _STRING = 2, 4, 8


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(name: str, value: str | int) -> bytes:
    if isinstance(value, str):
        return _string(name) + struct.pack("<I", _STRING) + _string(value)
    if name in ("split.no", "split.count"):
        return _string(name) + struct.pack("<IH", _U16, value)
    return _string(name) + struct.pack("<II", _U32, value)


def write(
    path: Path, metadata: list[tuple[str, str | int]], tensors: list[tuple[str, str, tuple, int]]
) -> Path:
    """A file byte by byte, 4,096 bytes of data. ``tensors``: name, type, shape as in torch, offset."""
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))
    head += b"".join(_value(*item) for item in metadata)
    for name, kind, shape, offset in tensors:
        head += _string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        head += struct.pack("<IQ", _NUMBERS[kind], offset)
    path.write_bytes(head + bytes(-len(head) % 32) + bytes(4096))
    return path


TRUE = [("general.architecture", "llama")]
TWO = [("a.weight", "F32", (2, 8), 0), ("b.weight", "F32", (8,), 64)]


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        (TRUE, TWO, None),
        ([*TRUE, ("general.alignment", 64)], TWO, None),
        ([*TRUE, ("general.alignment", 16)], [TWO[0], ("b.weight", "F32", (4,), 64)], None),
        ([*TRUE, ("general.alignment", 0)], TWO, "general.alignment is 0"),
        ([*TRUE, ("general.alignment", 48)], TWO, "general.alignment is 48"),
        ([*TRUE, ("general.alignment", "x")], TWO, "general.alignment is 'x'"),
        ([*TRUE, *TRUE], TWO, "general.architecture is in its header twice"),
        (TRUE, [TWO[0], ("a.weight", "F32", (8,), 64)], "a.weight is in its header twice"),
        (TRUE, [("a.weight", "I32", (2, 8), 0)], "a.weight is I32, and weights are floats"),
        (TRUE, [("a.bias", "I8", (32,), 0)], "a.bias is I8, and weights are floats"),
        (TRUE, [("blk.3.ffn_gate_tid2eid.weight", "I32", (4, 8), 0)], None),
        (TRUE, [("a.weight", "Q4_0", (2, 16), 0)], r"Q4_0 \[2, 16\]: rows are not whole blocks"),
        (TRUE, [TWO[0], ("b.weight", "F32", (8,), 32)], "b.weight does not begin where"),
        (TRUE, [TWO[0], ("b.weight", "F32", (8,), 96)], "b.weight does not begin where"),
        (TRUE, [("a.weight", "F32", (2, 8), 64)], "a.weight does not begin where"),
        (TRUE, [("a.weight", "F32", (2, 800), 0)], "truncated"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path, metadata, tensors, message):
    path = write(tmp_path / "m.gguf", metadata, tensors)
    if message is None:
        assert len(read_header(path).tensors) == len(tensors)
        return
    with pytest.raises(ModelError, match=message) as caught:
        read_header(path)
    assert "\n" not in str(caught.value)


@pytest.fixture
def parts(tiny_f32, tmp_path) -> list[Path]:
    return split(tiny_f32.path, tmp_path / "m", 3)


def test_a_split_model_is_all_its_parts(tiny_f32, parts, tmp_path):
    header = read_header(parts[0])
    assert set(header.tensors) == set(read_header(tiny_f32.path).tensors)
    assert all_parts(parts[0]) == parts
    before = identify(parts[0], tmp_path / "cache")
    data = bytearray(parts[2].read_bytes())
    data[-1] ^= 1
    parts[2].write_bytes(data)
    assert identify(parts[0], tmp_path / "cache") != before
    lm = LlamaCppEngine.open(describe_gguf(parts[0]), EngineSettings(device="cpu", n_threads=1))
    with closing(lm):
        assert lm.logits([1, 2, 3]).shape == (3, 512)


def test_parts_of_gguf_split_give_the_logits_of_the_whole(tiny_f32, tmp_path):
    """Bit for bit, and the sizes and layers are the same; their content is another."""
    parts = split(tiny_f32.path, tmp_path / "folder" / "m", 4, like="gguf-split")
    whole, apart = (describe_gguf(path) for path in (tiny_f32.path, parts[0]))
    assert replace(apart, path=whole.path) == whole
    found = []
    for artifact in (whole, apart):
        lm = LlamaCppEngine.open(artifact, EngineSettings(device="cpu", n_threads=1))
        with closing(lm):
            found.append(lm.logits(list(range(1, 40))))
    assert found[0].shape == (39, 512)
    np.testing.assert_array_equal(*found)
    assert identify(parts[0], tmp_path / "c") != identify(tiny_f32.path, tmp_path / "c")


def test_the_parts_are_named_not_their_names(parts, tmp_path):
    """A renamed split model is the same; so is one of links, as in the hub's cache."""
    before = identify(parts[0], tmp_path / "cache")
    (tmp_path / "links").mkdir()
    links = []
    for i, part in enumerate(parts, 1):
        part.rename(tmp_path / f"blob{i}")
        links.append(tmp_path / "links" / f"other-{i:05d}-of-00003.gguf")
        links[-1].symlink_to(tmp_path / f"blob{i}")
    ref = resolve_model(str(links[0]), dtype="float32", cache_dir=tmp_path / "cache")
    assert (ref.identity, ref.path) == (before, links[0])


def test_a_file_that_is_not_split_keeps_its_identity(tiny_f32, tmp_path):
    """The rule of 0.1.0, whose results stay found."""
    digest = hashlib.sha256(tiny_f32.path.read_bytes()).hexdigest()
    wanted = hashlib.sha256(f":{digest}\n".encode()).hexdigest()
    assert identify(tiny_f32.path, tmp_path) == f"sha256:{wanted}"


def test_a_part_that_is_not_the_first_or_not_there_is_named(parts, tmp_path):
    for act, message in (
        (lambda: None, None),
        (lambda: parts[2].rename(tmp_path / "x"), f"its part 3 of 3 is missing: {parts[2]}"),
        (lambda: shutil.copy(parts[1], parts[2]), "m-00003-of-00003.gguf: is not part 3 of 3"),
        (
            lambda: write(parts[2], [("split.no", 2), ("split.count", 3)], []),
            "of another model",
        ),
        (lambda: parts[0].rename(tmp_path / "n.gguf"), "call it n-00001-of-00003.gguf"),
    ):
        act()
        first = tmp_path / "n.gguf" if not parts[0].exists() else parts[0]
        if message is None:
            read_header(first)
        else:
            with pytest.raises(ModelError, match=message):
                read_header(first)
    with pytest.raises(ModelError, match=f"part 2 of 3: give the first part, {parts[0]}"):
        resolve_model(str(parts[1]), dtype="float32", cache_dir=tmp_path / "cache")


def _gguf(*values: bytes, n_values: int | None = None, n_tensors: int = 0, rest: bytes = b"") -> bytes:
    n = len(values) if n_values is None else n_values
    return struct.pack("<4sIQQ", b"GGUF", 3, n_tensors, n) + b"".join(values) + rest


ARCHITECTURE = _value("general.architecture", "llama")
HUGE = 2**60


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_gguf(n_tensors=HUGE), "1,152,921,504,606,846,976 tensors, and the most is 100,000: damaged"),
        (_gguf(n_tensors=2**64 - 1), "tensors, and the most is 100,000"),
        (_gguf(n_values=HUGE), "metadata values, and the most is 100,000"),
        (_gguf(struct.pack("<Q", 2**62)), "a value of 4,611,686,018,427,387,904 bytes, and the most"),
        (_gguf(struct.pack("<Q", 2**64 - 1)), "bytes, and the most is 33,554,432"),
        (_gguf(struct.pack("<Q", 2**20)), "cut off or damaged"),
        (_gguf(_string("a") + struct.pack("<IIQ", 9, 8, HUGE)), "strings, and the most is 8,388,608"),
        (
            _gguf(_string("a") + struct.pack("<IIQ", 9, 12, HUGE)),
            "bytes, and the most is 1,073,741,824",
        ),
        (_gguf(_string("a") + struct.pack("<IIQQ", 9, 8, 1, 2**63)), "bytes, and the most is 1,073"),
        (_gguf(_string("a") + struct.pack("<IIQ", 9, 9, 1)), "cut off or damaged"),
        (_gguf(_string("a") + struct.pack("<I", 99)), "cut off or damaged"),
        (
            _gguf(ARCHITECTURE, n_tensors=1, rest=_string("w") + struct.pack("<I", 2**32 - 1)),
            "dimensions",
        ),
        (
            _gguf(
                ARCHITECTURE,
                n_tensors=1,
                rest=_string("w") + struct.pack("<I4QIQ", 4, *[2**61] * 4, 0, 0),
            ),
            "truncated",
        ),
        (_gguf(), "no general.architecture: not a model"),
        (_gguf(_value("general.architecture", 3)), "no general.architecture: not a model"),
        (
            _gguf(ARCHITECTURE, _value("llama.block_count", 2**31)),
            "llama.block_count is 2147483648: damaged",
        ),
        (_gguf(ARCHITECTURE, _value("llama.block_count", "x")), "llama.block_count is 'x': damaged"),
        (_gguf(ARCHITECTURE, _value("llama.attention.head_count", "x")), "head_count is 'x': damaged"),
        (
            _gguf(ARCHITECTURE, _string("split.count") + struct.pack("<II", _U32, 2**32 - 1)),
            "part 1 of 4294967295, by its header: damaged",
        ),
    ],
)
def test_a_header_that_announces_more_than_any_model_has_is_one_line(tmp_path, data, message):
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"model\.gguf: ") as caught:
        read_header(path)
    assert message in str(caught.value)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300 + len(str(path))


def test_many_empty_strings_in_a_file_full_of_zeros_end(tmp_path):
    path = tmp_path / "model.gguf"
    strings = _string("a") + struct.pack("<IIQ", 9, 8, 5_000_000)
    path.write_bytes(_gguf(strings, strings, n_values=3))
    with path.open("r+b") as file:
        file.truncate(2**40)  # a sparse file: any number of zeros
    with pytest.raises(ModelError, match=r"cut off or damaged|the most is"):
        read_header(path)


def test_linears_are_what_a_quantization_is_about(tmp_path):
    shapes = {
        "blk.0.attn_q.weight": True,
        "blk.0.ffn_up_exps.weight": True,
        "blk.0.ffn_gate_inp.weight": False,  # a router
        "blk.0.ssm_conv1d.weight": False,
        "token_embd.weight": False,
        "position_embd.weight": False,
        "output.weight": False,
    }
    tensors = [(name, "F32", (4, 8), 128 * i) for i, name in enumerate(shapes)]
    header = read_header(write(tmp_path / "m.gguf", TRUE, tensors))
    assert {t.name: t.is_linear for t in header.tensors} == shapes
    assert header.embedding_bytes == 3 * 128
