"""The trials' own parts; tests/doctor/test_libraries.py runs two of them."""

from __future__ import annotations

import json

import pytest

from qeval.doctor import trials
from qeval.doctor.probe import Layer


def test_main_writes_what_came_of_it(tmp_path, monkeypatch):
    trial = trials.Outcome([Layer("nf4", "", "Linear4bit", 1.5, 0.09)], "cpu", ["a note"])
    monkeypatch.setitem(trials.OWN, "fine", lambda: trial)
    assert trials.main(["fine", str(tmp_path / "r.json")]) == 0
    assert json.loads((tmp_path / "r.json").read_text()) == {
        "layers": [{"name": "nf4", "error": "", "kernel": "Linear4bit", "ms": 1.5, "deviation": 0.09}],
        "device": "cpu",
        "notes": ["a note"],
        "facts": {},
    }


def test_main_writes_the_first_line_of_an_error(tmp_path, monkeypatch):
    def fails():
        raise OSError("libcudart.so.13: cannot open shared object file\nmore")

    monkeypatch.setitem(trials.OWN, "fails", fails)
    assert trials.main(["fails", str(tmp_path / "r.json")]) == 1
    error = "OSError: libcudart.so.13: cannot open shared object file"
    assert json.loads((tmp_path / "r.json").read_text()) == {"error": error}


def test_gpus_are_counted_and_one_that_only_the_driver_sees_is_told(tmp_path, monkeypatch):
    names = ["NVIDIA H100", "NVIDIA H100", "NVIDIA L4"]
    assert trials._gpu_notes("13.0", names) == ["2 x NVIDIA H100", "NVIDIA L4", "CUDA 13.0"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert trials._gpu_notes(None, []) == ["no GPU"]
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: x)'\n")
    program.chmod(0o755)
    assert trials._gpu_notes(None, [])[0].startswith("this torch sees no GPU, nvidia-smi does")
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert trials._gpu_notes(None, []) == ["no GPU"]


@pytest.mark.parametrize(
    ("info", "widest"),
    [
        ("CPU : SSE3 = 1 | AVX = 1 | AVX2 = 1 | F16C = 1 | REPACK = 1 | ", "AVX2"),
        ("CPU : AVX2 = 1 | AVX512 = 1 | AMX_INT8 = 1 | ", "AMX_INT8"),
        ("CPU : AVX = 1 | AVX2 = 0 | ", "AVX"),
        ("CPU : NEON = 1 | ARM_FMA = 1 | ", "NEON"),
        ("CPU : LLAMAFILE = 1 | ", ""),
    ],
)
def test_the_widest_instructions_of_llama_cpp(info, widest):
    assert trials._widest(info) == widest
