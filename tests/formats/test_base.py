"""What holds for every packed format that qeval knows, and for the code that walks them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import qeval.doctor
import qeval.formats
from qeval.core.artifact import ModelRef
from qeval.core.errors import UsageError
from qeval.formats.base import FORMATS, PackedFormat, formats, registered

FOLDER = Path(qeval.formats.__file__).parent
WALKING = [
    *(FOLDER / f"{name}.py" for name in ("recognise", "describe", "load", "limits", "tensors")),
    *Path(qeval.doctor.__file__).parent.glob("*.py"),
]


def test_formats_are_imported_without_torch():
    code = (
        "import sys; from qeval.formats.base import formats; formats();"
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("one", formats(), ids=lambda one: one.name)
def test_a_format_is_found_and_says_what_it_needs(one: PackedFormat):
    assert FORMATS[one.name] is type(one)
    assert bool(one.quant_methods) != bool(one.file)  # one way to say it
    assert one.extra and one.modules and one.suffixes
    assert set(one.unmistakable) <= set(one.suffixes)
    found = one.found("label", 4, 128, True, {})
    assert (registered(found).name, found.extra, found.modules) == (one.name, one.extra, one.modules)
    if one.library is not None:
        assert set(one.modules) <= set(one.library.modules)
        assert type(one).trial is not PackedFormat.trial


def test_no_two_formats_are_meant_by_one_word_or_file():
    known = formats()
    words = Counter(word for one in known for word in (*one.quant_methods, one.file) if word)
    assert words.most_common(1)[0][1] == 1
    assert [one.name for one in known if one.unnamed] == ["gptq"]


def test_a_kernel_is_named_by_formats_that_compute_in_half_precision(tmp_path):
    refused = set()
    for one in formats():
        try:
            one.check_model(
                one.found("label", 4, 128, True, {}), ModelRef("m", tmp_path, "sha256:0", "float32")
            )
        except UsageError:
            refused.add(one.name)
    assert refused == {one.name for one in formats() if one.takes_kernel} == {"gptq", "awq"}


@pytest.mark.parametrize("file", WALKING, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_the_code_that_walks_them_names_none(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    said = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert not said & ({*FORMATS.built_in} - {"fp8"})  # also a kind of number
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imported & {target.partition(":")[0] for target in FORMATS.built_in.values()}
