"""`qeval doctor` says what was tried and what came of it."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from qeval.core.errors import SandboxError
from qeval.doctor import examine as doctor
from qeval.doctor.libraries import Found, known
from qeval.doctor.probe import Layer
from qeval.envs.build import EnvState
from qeval.sandbox.weak import WeakSandbox


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> doctor.Report:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QEVAL_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        return doctor.examine(trials=False)


def test_every_backend_is_there_with_its_walls(report):
    assert [b.name for b in report.backends] == ["kernel", "bubblewrap", "weak"]
    for backend in report.backends:
        assert backend.works == (not backend.error)
        if backend.works:
            assert backend.walls["rlimits"] == ""
            assert backend.ms_per_program > 0


def test_the_weak_one_is_never_chosen(report):
    assert report.chosen != "weak"
    assert not report.backends[-1].safe


def test_text_and_json_say_the_same(report):
    data = json.loads(json.dumps(report.to_json()))
    assert data["chosen"] == report.chosen
    text = report.text()
    for backend in report.backends:
        assert f"sandbox {backend.name}: {'works' if backend.works else 'does not work'}" in text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line}
    for found in data["libraries"]:
        state = "installed" if found["state"] == "not tried" else found["state"]
        assert rows[found["name"]][1:3] == [found["version"] or "-", state]
    for name, version in data["packages"].items():
        assert rows[name][1:3] == [version or "-", "installed" if version else "missing"]
    for found in data["environments"]:
        assert rows[found["name"]][2:] == ["missing", "qeval", "env", "create", found["name"]]


def test_without_trials_nothing_is_tried(report):
    assert [found.name for found in report.libraries] == [library.name for library in known()]
    assert {found.state for found in report.libraries} <= {"not tried", "missing"}
    assert not any(found.layers for found in report.libraries)


def test_a_machine_without_a_sandbox_is_told_what_to_do(monkeypatch):
    class Broken(WeakSandbox):
        name = "kernel"

        def __init__(self) -> None:
            raise SandboxError("kernel: unshare: Operation not permitted")

    monkeypatch.setattr(doctor, "BACKENDS", (Broken,))
    found = doctor.examine(trials=False)
    assert found.chosen is None
    assert "unshare: Operation not permitted" in found.text()
    assert "no sandbox for generated code" in found.text()


def library(name: str, state: str, *layers: Layer, **more) -> Found:
    return Found(name, more.pop("version", "1.0"), state, layers=layers, device="cuda", **more)


def environment(name: str, state: str, works: bool | None, error: str, **versions: str) -> EnvState:
    return EnvState(name, "for a test", state, Path("/e"), "3.11.9", 1, versions, works, error)


def test_the_table():
    gpus = {"cuda": "13.0", "gpus": ["NVIDIA H100", "NVIDIA H100"]}
    found = doctor.Report(
        "Linux",
        "3.11.9",
        {"transformers": "5.17.0", "pyarrow": None},
        (
            library(
                "torch",
                "works",
                Layer("float", "", "Linear", 0.01234, 0.001),
                notes=("2 x NVIDIA H100", "CUDA 13.0"),
                facts=gpus,
            ),
            library(
                "gptqmodel",
                "partly",
                Layer("triton", "RuntimeError: Failed to find C compiler"),
                Layer("torch", "", "TorchLinear", 12.345, 0.1),
                notes=("not tried: marlin",),
            ),
            library("hqq", "broken", error="killed by SIGILL (built for another processor)"),
            replace(library("quanto", "missing", error="pip install it"), version=None, device=""),
        ),
        (
            environment("auto-awq", "ready", False, "import awq: no zstandard", autoawq="0.2.9"),
            environment("auto-gptq", "ready", True, "", auto_gptq="0.7.1", torch="2.13.0"),
        ),
        (),
    )
    assert found.text().splitlines()[2:-2] == [
        "library       version  state      a call of a layer 512 x 1024 on 16 tokens, on cuda",
        "torch         1.0      works      float 0.0123 ms Linear; 2 x NVIDIA H100; CUDA 13.0",
        "gptqmodel     1.0      partly     triton fails: RuntimeError: Failed to find C compiler; "
        "torch 12.3 ms TorchLinear; not tried: marlin",
        "hqq           1.0      broken     killed by SIGILL (built for another processor)",
        "quanto        -        missing    pip install it",
        "",
        "package       version  state",
        "transformers  5.17.0   installed",
        "pyarrow       -        missing    the package 'pyarrow' is not installed: "
        "pip install 'qeval[hub]'",
        "",
        "environment   version  state",
        "auto-awq      0.2.9    broken     import awq: no zstandard: "
        "qeval env create auto-awq --recreate",
        "auto-gptq     0.7.1    works      torch 2.13.0",
    ]
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["libraries"][0]["facts"] == gpus
    assert data["libraries"][1]["layers"][0]["error"].endswith("C compiler")
    assert data["environments"][0]["path"] == "/e"


@pytest.mark.parametrize("works", [True, False])
def test_the_exit_code_is_that_of_the_sandbox_and_torch_stays_out(works):
    code = f"""
import sys
from qeval.cli.main import main
from qeval.doctor import examine
examine._tried = lambda kind: examine.Backend("kernel", {works}, True, "", {{}}, 1.0)
sys.argv = ["qeval", "doctor", "--no-trials", "--format", "json"]
try:
    main()
finally:
    print(sorted({{"torch", "transformers"}} & sys.modules.keys()), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == (0 if works else 1), done.stderr
    assert done.stderr == "[]\n"
    assert json.loads(done.stdout)["chosen"] == ("kernel" if works else None)
