"""What is shown of the machine: enough for the whole standard library, nothing else, and from wherever
the interpreter, the environment and the checkout are.

What any program may not do is tried in the bubblewrap way, too, where there is one (test_attacks.py
tries all of it in the way that this machine prefers).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qeval.core.errors import SandboxError
from qeval.sandbox import Limits, Program, bubblewrap, lane, system
from qeval.sandbox.bubblewrap import Bubblewrap
from qeval.sandbox.kernel import KernelSandbox
from qeval.sandbox.pool import LaneSandbox

sys.path.insert(0, str(Path(__file__).parent))
from attacks import ATTACKS, _host

KINDS = [KernelSandbox, Bubblewrap]
USES = """\
import bz2, ctypes, decimal, encodings.cp037, hashlib, json, lzma, sqlite3, ssl, zoneinfo
def f(x):
    zoneinfo.ZoneInfo("Europe/Berlin"), ssl.create_default_context(), ctypes.CDLL("libm.so.6")
    return x + sqlite3.connect(":memory:").execute("select 1").fetchone()[0]
"""
# What the library hands to other programs, or what needs a screen, a terminal or a test's own files.
NOT_THERE = {"antigravity", "idlelib", "test", "this", "turtledemo", "lib2to3", "_tkinter", "ensurepip"}


def made(kind: type[LaneSandbox]) -> LaneSandbox:
    try:
        return kind()
    except SandboxError as err:
        if os.environ.get("QEVAL_REQUIRE_SANDBOX") and kind is KernelSandbox:
            raise
        pytest.skip(str(err))


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def sandbox(request: pytest.FixtureRequest) -> LaneSandbox:
    return made(request.param)


@pytest.fixture
def below_tmp() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="below-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)  # as root, a lane is another user
        yield Path(folder)


def passes(sandbox: LaneSandbox, code: str = USES) -> tuple[str, str]:
    [verdict] = sandbox.run([Program("p", code, "assert f(1) == 2", names=("f",))], Limits(), 1)
    return verdict.text, verdict.detail


def test_every_module_of_the_standard_library_can_be_imported(sandbox: LaneSandbox):
    """... that this interpreter can import in the open."""
    names = sorted(sys.stdlib_module_names - NOT_THERE)
    code = (
        "import importlib, warnings\nwarnings.simplefilter('ignore')\n"
        f"bad = []\nfor name in {names!r}:\n"
        "    try: importlib.import_module(name)\n"
        "    except ImportError as err: bad.append(name)\n"
    )
    command = [str(system.interpreter()), "-I", "-S", "-c", code + "print(' '.join(bad))"]
    bad = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert len(bad) < 40  # those of other systems
    code += f"def f(x): return sorted(set(bad) - set({bad!r}))"
    [verdict] = sandbox.run([Program("p", code, "assert f(1) == []", names=("f",))], Limits(), 1)
    assert verdict.passed, verdict.detail


def test_the_bubblewrap_way_holds_what_the_kernel_way_holds():
    names = ("read_packages", "read_other_pythons", "signal_by_locks", "write_library")
    report = _host.run_all(made(Bubblewrap), [ATTACKS[name] for name in names], lanes=1)
    for name in names:
        verdict, after = report.verdicts[name], report.verdicts[f"after {name}"]
        assert ATTACKS[name].contained(verdict), verdict
        assert after.passed, after
    assert (report.hits, report.leaks) == ([], [])


def test_nothing_but_the_standard_library_and_libraries_is_shown():
    found = system.system()
    standard = [inside for inside, outside in found.files if (Path(outside) / "os.py").exists()]
    assert standard
    for inside, outside in found.files:
        if inside not in standard and Path(outside).is_dir():
            assert not [*Path(outside).rglob("*.py"), *Path(outside).rglob("*.whl")], inside
        if Path(outside).is_file():
            assert Path(outside).suffix not in (".py", ".pyc", ".whl", ".egg", ".zip")
    for path in standard:
        assert {str(folder) for folder in Path(path).glob("*-packages")} <= set(found.hidden)


def test_the_code_that_runs_inside_may_lie_below_tmp(sandbox, below_tmp, monkeypatch):
    """A checkout, or the packages of an environment, of which /tmp inside shows nothing."""
    shutil.copytree(lane.HERE / "inside", below_tmp / "inside")
    monkeypatch.setattr(lane, "HERE", below_tmp)
    monkeypatch.setattr(bubblewrap, "HERE", below_tmp)
    monkeypatch.setattr(lane.Launch, "here", str(below_tmp), raising=False)
    assert passes(type(sandbox)()) == ("passed", "")


def test_the_interpreter_may_live_below_tmp(sandbox, below_tmp, monkeypatch):
    real = system.system()
    [standard] = {Path(out) for _, out in real.files if (Path(out) / "os.py").exists()}
    shutil.copytree(
        standard,
        below_tmp / "lib" / standard.name,
        copy_function=link_or_copy,
        symlinks=True,
        ignore=shutil.ignore_patterns("test", "*-packages", "config-*", "idlelib", "*.a", "lib2to3"),
    )
    for path in real.python.parents[1].joinpath("lib").glob("libpython*"):
        link_or_copy(path, below_tmp / "lib" / path.name)
    python = below_tmp / "bin" / real.python.name
    python.parent.mkdir()
    shutil.copy2(real.python, python)
    monkeypatch.setattr(system, "interpreter", lambda: python)
    system.system.cache_clear()
    try:
        assert system.system().moved == (str(below_tmp), system.MOVED)
        moved = made(type(sandbox))
        assert passes(moved) == ("passed", "")
        where = "import fractions\ndef f(x): return x + fractions.__file__.startswith('/python/lib/')"
        assert passes(moved, where) == ("passed", "")
    finally:
        system.system.cache_clear()


def link_or_copy(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def test_an_interpreter_that_cannot_answer_is_named(monkeypatch, tmp_path):
    silent = tmp_path / "python"
    silent.write_text("#!/bin/sh\nexit 3\n")
    silent.chmod(0o755)
    monkeypatch.setattr(system, "interpreter", lambda: silent)
    system.system.cache_clear()
    with pytest.raises(SandboxError, match=r"python cannot say which libraries it loads: .*status 3"):
        system.system()


@pytest.mark.parametrize("kind", KINDS)
def test_programs_step_back_also_where_they_were_started_before_it_was_said(kind, monkeypatch):
    """bwrap forks by itself, and on a loaded machine before its priority is set."""
    said = os.setpriority

    def late(which: int, who: int, priority: int) -> None:
        time.sleep(0.5)
        said(which, who, priority)

    sandbox = made(kind)
    monkeypatch.setattr(lane.os, "setpriority", late)
    code = "import os\ndef f(x): return os.getpriority(os.PRIO_PROCESS, 0)"
    program = Program("p", code, f"assert f(1) == {lane.NICENESS}", names=("f",))
    [verdict] = sandbox.run([program], Limits(), 1)
    assert verdict.passed, verdict.detail
