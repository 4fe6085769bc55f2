"""The reader of GGUF headers against the installed library, and against files cut anywhere."""

from __future__ import annotations

import ctypes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qeval.engines.gguf_file import GGML_TYPES, read_header
from qeval.errors import ModelError, QevalError

pytest.importorskip("llama_cpp")


def test_the_table_of_types_is_that_of_the_installed_library():
    from qeval.engines._llama import library

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
