"""Hard limits of the shell below those of a program: the lower one holds and is said, or is named with
its fix where no sandbox can work with it."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from qeval.core.errors import SandboxError
from qeval.sandbox import Limits, allowed_here, find_sandbox, host_limits
from qeval.sandbox.host_limits import HostLimitError, check_cpu

REPO = Path(__file__).parents[2]
MIB = 1 << 20
SCORE = """\
import json, resource, sys
from qeval.core.errors import SandboxError
from qeval.sandbox import Limits, Program, allowed_here, find_sandbox
right = ("def f(x): return x + 1", "assert f(1) == 2")
programs = [Program(str(i), *right, names=("f",)) for i in range(4)]
for name, value in json.loads(sys.argv[1]).items():
    resource.setrlimit(getattr(resource, name), (value, value))
try:
    notes = allowed_here(Limits())[1]
    print(json.dumps([*notes, *(v.text for v in find_sandbox().run(programs, Limits(), 2))]))
except SandboxError as err:
    print(json.dumps(str(err)))
"""


@pytest.fixture
def hard(monkeypatch):
    """The hard limits of this process, by name; others have none."""
    found = {}
    inf = resource.RLIM_INFINITY
    monkeypatch.setattr(
        host_limits.resource,
        "getrlimit",
        lambda kind: next(
            ((inf, v) for k, v in found.items() if getattr(resource, k) == kind), (inf, inf)
        ),
    )
    return found


def test_without_limits_nothing_changes(hard):
    assert allowed_here(Limits()) == (Limits(), ())
    hard["RLIMIT_AS"] = 8 << 30
    assert allowed_here(Limits()) == (Limits(), ())


LOWER = {
    "RLIMIT_AS": ("memory_bytes", 1024 * MIB, "1.0 GiB of memory instead of 4.0 GiB (ulimit -v)"),
    "RLIMIT_DATA": ("memory_bytes", 512 * MIB, "512.0 MiB of memory instead of 4.0 GiB (ulimit -d)"),
    "RLIMIT_FSIZE": ("scratch_bytes", 2 * MIB, "2.0 MiB of files instead of 64.0 MiB (ulimit -f)"),
    "RLIMIT_NOFILE": ("open_files", 20, "20 open files instead of 256 (ulimit -n)"),
    "RLIMIT_NPROC": ("threads", 30, "30 threads instead of 256 (ulimit -u)"),
}


@pytest.mark.parametrize("name", LOWER)
def test_the_lower_limit_holds_and_is_said(hard, name):
    field, value, said = LOWER[name]
    hard[name] = value
    limits, notes = allowed_here(Limits())
    assert getattr(limits, field) == value
    assert notes == (f"programs had {said}",)


@pytest.mark.parametrize("name", LOWER)
def test_one_that_is_too_low_for_any_sandbox_is_named_with_its_fix(hard, name):
    hard[name] = 2
    letter = LOWER[name][2][-2]
    with pytest.raises(HostLimitError, match=rf"^a sandbox needs .*raise it \(`ulimit -H{letter}`"):
        allowed_here(Limits())


def test_cpu_time_that_ends_before_a_program_does_is_named(hard):
    hard["RLIMIT_CPU"] = 4
    check_cpu(Limits(timeout_s=3.0))
    with pytest.raises(HostLimitError, match=r"may take 3.5 s, .*CPU time is 4 s: raise it .*-Ht"):
        check_cpu(Limits(timeout_s=3.5))


@pytest.mark.parametrize("name", LOWER)
def test_programs_run_under_the_lower_limit(name):
    try:
        find_sandbox()
    except SandboxError as err:
        pytest.skip(str(err))
    _, value, said = LOWER[name]
    assert scored({name: value}) == [f"programs had {said}", *["passed"] * 4]


def test_what_a_sandbox_cannot_work_with_is_said_instead_of_another_fix():
    for limits, letter in (({"RLIMIT_NOFILE": 9}, "n"), ({"RLIMIT_CPU": 3}, "t")):
        message = scored(limits)
        assert isinstance(message, str), message
        assert f"`ulimit -{letter}`" in message or f"`ulimit -H{letter}`" in message
        assert "bubblewrap" not in message and "\n" not in message


def test_at_the_edge_it_works_or_says_so():
    """16 open files are enough where few are open already."""
    said = scored({"RLIMIT_NOFILE": 16})
    assert said[-4:] == ["passed"] * 4 if isinstance(said, list) else "ulimit -" in said


def scored(limits: dict[str, int]) -> list[str] | str:
    """What a process with these hard limits says of its limits and of four right programs."""
    done = subprocess.run(
        [sys.executable, "-c", SCORE, json.dumps(limits)],
        capture_output=True,
        text=True,
        cwd=REPO,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
