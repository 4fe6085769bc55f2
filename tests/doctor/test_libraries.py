"""What is installed is looked up, what works is tried; nothing that a library does reaches doctor."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest

from qeval.core.errors import MissingExtraError
from qeval.doctor import libraries, trials
from qeval.doctor.libraries import Found, Library, known
from qeval.formats.base import formats

REPO = Path(__file__).parents[2]

WRONG_HQQ = """
import torch

class BaseQuantizeConfig:
    def __init__(self, **options): pass

class HQQLinear(torch.nn.Module):
    def __init__(self, linear, config, **how):
        super().__init__()
        self.inner = linear

    def forward(self, x):
        return self.inner(x.roll(1, -1))
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Puts a module before the installed one, in the processes that trials start; a Library that asks
    for nothing, so that it is tried whatever is installed."""
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))

    def make(name: str, module: str, code: str) -> Library:
        *packages, last = module.split(".")
        folder = tmp_path
        for package in packages:
            folder /= package
            folder.mkdir()
            (folder / "__init__.py").touch()
        (folder / f"{last}.py").write_text(code)
        return Library(name, name, name, ())

    return make


def test_what_a_library_does_is_one_line_about_it(fake):
    ill = "import os, signal\nos.kill(os.getpid(), signal.SIGILL)"
    exits = "import os, sys\nprint('out of luck', file=sys.stderr, flush=True)\nos._exit(3)"
    broken = "raise ImportError('libx.so.1: cannot open shared object file\\nmore')"
    found = libraries.examine(
        [
            fake("hqq", "hqq.core.quantize", ill),
            fake("torchao", "torchao.quantization", exits),
            fake("bitsandbytes", "bitsandbytes.nn", broken),
        ]
    )
    assert {f.name: f.error for f in found} == {
        "hqq": "killed by SIGILL (built for another processor)",
        "torchao": "it ended with exit code 3: out of luck",
        "bitsandbytes": "ImportError: libx.so.1: cannot open shared object file",
    }
    assert {f.state for f in found} == {"broken"}


def test_one_that_hangs_is_ended_with_what_it_started(fake, tmp_path):
    code = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
time.sleep(600)
"""
    (found,) = libraries.examine([fake("hqq", "hqq.core.quantize", code)], timeout=4)
    assert (found.state, found.error) == ("broken", "no answer in 4 s")
    assert 4 <= found.seconds < 300
    _wait_for(partial(_has_ended, (tmp_path / "pid").read_text()))


@pytest.mark.real
@pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")
def test_a_library_whose_layer_is_wrong_is_broken(fake):
    (found,) = libraries.examine([fake("hqq", "hqq.core.quantize", WRONG_HQQ)])
    (layer,) = found.layers
    assert (found.state, layer.kernel) == ("broken", "HQQLinear")
    assert re.match(r"its product is off by 1\d\d\.\d%; a right one by 20% at most", layer.error)


@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="needs llama-cpp-python")
def test_llama_cpp_quantizes_and_runs_a_layer_here():
    library = next(library for library in known() if library.name == "llama.cpp")
    states: list[tuple[list[str], int, int]] = []
    (found,) = libraries.examine([library], tell=lambda *state: states.append(state))
    assert (found.state, found.error) == ("works", "")
    (layer,) = found.layers
    assert layer.kernel.startswith("ggml Q4_K (")
    assert 0.02 < layer.deviation < 0.15  # quantized, and rightly
    assert states[0] == (["llama.cpp"], 0, 1) and states[-1] == ([], 1, 1)


def test_a_missing_package_comes_with_the_command_and_is_not_tried():
    library = Library("hqq", "no-such-thing", "hqq", ("json", "no_such_thing"))
    (found,) = libraries.examine([library])
    assert found == Found(
        "hqq", None, "missing", "the package 'no_such_thing' is not installed: pip install 'qeval[hqq]'"
    )
    assert found.error == str(MissingExtraError("no_such_thing", "hqq"))


def test_a_parent_package_that_does_not_import_is_broken(tmp_path, monkeypatch):
    (tmp_path / "crooked").mkdir()
    (tmp_path / "crooked" / "__init__.py").write_text("raise OSError('bad\\nmore')")
    monkeypatch.syspath_prepend(str(tmp_path))
    (found,) = libraries.examine([Library("hqq", "crooked", "hqq", ("crooked", "crooked.part"))])
    assert (found.state, found.error) == ("broken", "OSError: bad")


def test_some_kernels_of_several_are_partly():
    def layer(name, error):
        return {"name": name, "error": error, "kernel": "", "ms": None, "deviation": None}

    def state(*errors):
        result = {"layers": [layer(str(i), e) for i, e in enumerate(errors)], "device": "cuda"}
        found = Found("gptqmodel", "7.6.0", "not tried")
        return libraries.judged(found, {**result, "notes": [], "facts": {}}).state

    assert state("", "") == "works"
    assert state("no compiler", "") == "partly"
    assert state("no compiler", "off") == "broken"


def test_an_interrupt_ends_the_trials(fake, tmp_path):
    pid_file = tmp_path / "pid"
    code = f"import os, time\nopen({str(pid_file)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)"
    fake("hqq", "hqq.core.quantize", code)
    # SIGINT may be ignored in whoever runs the tests.
    doctor = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from qeval.doctor import libraries as l; l.examine([l.Library('hqq', 'hqq', 'hqq', ())])"
    )
    process = subprocess.Popen([sys.executable, "-c", doctor], stderr=subprocess.PIPE, text=True)
    pid = _wait_for(lambda: pid_file.exists() and pid_file.read_text())
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=60)[1]
    _wait_for(partial(_has_ended, pid))


def _has_ended(pid: str) -> bool:
    """Gone, or left for whoever adopted it to ask for its status."""
    assert pid
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


def _wait_for(what, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


def test_every_library_has_a_trial_and_an_extra_that_installs_it():
    of_formats = {one.library.name for one in formats() if one.library}
    assert {library.name for library in known()} == trials.OWN.keys() | of_formats
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for library in known():
        installed = [re.split(r"[<>=]", line)[0] for line in extras[library.extra]]
        assert library.distribution in installed
