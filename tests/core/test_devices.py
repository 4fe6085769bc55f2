"""The device that an engine will use, told without importing its library."""

from __future__ import annotations

import subprocess
import sys

import pytest

from qeval.core import devices
from qeval.core.errors import EngineError

CARDS = ("A", "B")


@pytest.mark.parametrize(
    ("asked", "build", "cards", "found"),
    [
        ("auto", "cpu", CARDS, "cpu"),
        ("auto", "cuda", (), "cpu"),
        ("auto", "cuda", CARDS, "cuda:0"),
        ("cpu", "cuda", CARDS, "cpu"),
        ("cuda", "cuda", CARDS, "cuda:0"),
        ("cuda:1", "cuda", CARDS, "cuda:1"),
        ("cuda:2", "cuda", CARDS, "this machine has cuda:0, cuda:1 only"),
        ("cuda", "cuda", (), "this machine shows no CUDA GPU"),
        ("cuda:1", "cpu", CARDS, "the installed torch computes on the CPU only"),
        ("cuda", "hip", (), "cuda:0"),
    ],
)
def test_torchs_device(monkeypatch, asked, build, cards, found):
    monkeypatch.setattr(devices, "gpus", lambda: cards)
    monkeypatch.setattr(devices, "_torch_build", lambda: build)
    check(devices.torch_device, asked, found)


@pytest.mark.parametrize(
    ("asked", "backends", "cards", "found"),
    [
        ("auto", (), CARDS, "cpu"),
        ("auto", ("cuda",), (), "cpu"),
        ("auto", ("cuda",), CARDS, "cuda:0"),
        ("auto", ("vulkan",), (), "cuda:0"),
        ("cuda:1", ("cuda",), CARDS, "cuda:1"),
        ("cuda", (), CARDS, "the installed llama-cpp-python was compiled for the CPU"),
        ("cuda", ("cuda",), (), "this machine shows no CUDA GPU"),
    ],
)
def test_llama_cpps_device(monkeypatch, asked, backends, cards, found):
    monkeypatch.setattr(devices, "gpus", lambda: cards)
    monkeypatch.setattr(devices, "_llama_backends", lambda: frozenset(backends))
    check(devices.llama_device, asked, found)


def check(device, asked: str, found: str) -> None:
    if found.startswith(("cpu", "cuda:")):
        assert device(asked) == found
        return
    with pytest.raises(EngineError, match=f"device {asked}: .*{found}") as caught:
        device(asked)
    assert "\n" not in str(caught.value)


def test_the_answers_are_those_of_the_libraries_themselves():
    """Without importing them, which takes seconds."""
    torch = pytest.importorskip("torch")
    code = (
        "import sys; from qeval.core import devices as m; "
        "print(m.torch_device('auto'), len(m.gpus()), m._torch_build(), 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    device, count, build, imported = out.stdout.split()
    assert device == ("cuda:0" if torch.cuda.is_available() else "cpu")
    assert build == ("cuda" if torch.version.cuda else "cpu")
    assert int(count) == torch.cuda.device_count() or build == "cpu"
    assert imported == "False"


def test_llama_cpps_backends_are_those_it_reports():
    llama_cpp = pytest.importorskip("llama_cpp")
    assert bool(devices._llama_backends()) or not llama_cpp.llama_supports_gpu_offload()
