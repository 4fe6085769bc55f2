"""Commands end, with all that they started, when the process that wanted them does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qeval.core import guard

TREE = """
import os, subprocess, sys, time
if len(sys.argv) > 2:
    command = [sys.executable, "-c", open(sys.argv[1]).read(), sys.argv[1], *sys.argv[3:]]
    subprocess.Popen(command, stdin=subprocess.DEVNULL)
with open(sys.argv[1] + ".pids", "a") as file:
    file.write(f"{os.getpid()}\\n")
time.sleep(600)
"""
PARENT = "import sys, time; from qeval.core import guard; guard.start(sys.argv[1:]); time.sleep(600)"


def wait_for(what: Callable[[], object]) -> object:
    deadline = time.monotonic() + 300
    while not (found := what()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie that nobody reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.fixture
def tree(tmp_path: Path) -> list[str]:
    """A command that starts a child, which starts another; all sleep."""
    (tmp_path / "tree").write_text(TREE)
    return [sys.executable, "-c", TREE, str(tmp_path / "tree"), "child", "grandchild"]


def pids(tree: list[str], n: int = 3) -> list[int]:
    """Of the command, its child and its grandchild, in the order of birth."""
    file = Path(f"{tree[3]}.pids")
    wait_for(lambda: file.exists() and len(file.read_text().splitlines()) == n)
    return sorted(map(int, file.read_text().split()))


@pytest.mark.parametrize(
    "how", ["its parent", "the guard", "the command, and the parent stops the rest"]
)
def test_nothing_outlives_a_kill(tree, how):
    process = subprocess.Popen([sys.executable, "-c", PARENT, *tree])
    command = next(p for p in pids(tree) if parent_of(parent_of(p)) == process.pid)
    if how == "its parent":
        process.kill()
        wait_for(lambda: not any(map(alive, pids(tree))))
    elif how == "the guard":
        os.kill(parent_of(command), signal.SIGKILL)
        wait_for(lambda: not alive(command))  # what stays is ended by stop(), or with the parent
    process.kill()
    process.wait()
    if how == "the guard":
        for pid in pids(tree):  # without the guard nobody ends them once the parent is gone
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not any(map(alive, pids(tree))))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_command_that_is_killed_is_seen_as_such_and_stop_ends_the_rest(tree, number):
    process = guard.start(tree)
    command = next(p for p in pids(tree) if parent_of(p) == process.pid)
    os.kill(command, number)
    assert process.wait(300) == -number
    guard.stop(process)
    wait_for(lambda: not any(map(alive, pids(tree))))


def test_stop_ends_all_of_it(tree):
    process = guard.start(tree)
    found = pids(tree)
    guard.stop(process)
    assert process.returncode == -signal.SIGTERM
    wait_for(lambda: not any(map(alive, found)))


def test_a_command_has_its_descriptors_an_empty_input_and_its_exit_code(tmp_path):
    read, write = os.pipe()
    code = f"import os, sys; os.write({write}, b'here' + sys.stdin.buffer.read()); sys.exit(7)"
    with (tmp_path / "log").open("w+") as log:
        process = guard.start([sys.executable, "-c", code], pass_fds=(write,), stdout=log, stderr=log)
        assert process.wait(300) == 7
        guard.stop(process)
        os.close(write)
        assert os.read(read, 100) == b"here"
        os.close(read)
        process = guard.start(["/no/such/program"], stdout=log, stderr=log)
        assert process.wait(300) == 127
        guard.stop(process)
    assert (
        tmp_path / "log"
    ).read_text() == "/no/such/program: cannot be run (No such file or directory)\n"
