"""What a program can do inside bubblewrap, tried by programs that try it."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from qeval.errors import SandboxError
from qeval.sandbox import Limits, Program, Verdict
from qeval.sandbox.bubblewrap import Bubblewrap

FAST = Limits(timeout_s=1.0, memory_bytes=512 << 20, scratch_bytes=8 << 20)


@pytest.fixture(scope="module")
def sandbox() -> Bubblewrap:
    try:
        box = Bubblewrap()
        [verdict] = box.run([program("pass")], FAST, 1)
    except SandboxError as err:
        pytest.skip(f"no working bubblewrap: {err}")
    assert verdict.passed
    return box


def program(code: str, *, id: str = "p", test: str = "", call: str = "pass") -> Program:
    return Program(id, code, test, call)


def judged(box: Bubblewrap, code: str, limits: Limits = FAST, **parts: str) -> Verdict:
    [verdict] = box.run([program(code, **parts)], limits, 1)
    assert verdict.sandbox == "bubblewrap"
    return verdict


REFUSED = {
    "home of the user": (f"open({str(Path.home() / '.profile')!r})", "FileNotFoundError"),
    "users": ("open('/etc/passwd')", "FileNotFoundError"),
    "this repository": (f"open({__file__!r})", "FileNotFoundError"),
    "host's /tmp": ("import os; assert os.listdir('/tmp')", "AssertionError"),
    "write to /": ("open('/x', 'w')", "OSError: [Errno 30]"),
    "write to /usr": ("open('/usr/x', 'w')", "OSError: [Errno 30]"),
    "write to /dev": ("open('/dev/shm/x', 'w')", "OSError: [Errno 30]"),
    "own runner": ("open('/runner.py', 'w')", "OSError: [Errno 30]"),
    "own request": (
        "f = open('/proc/1/fd/0', 'r+b', buffering=0); f.write(b'x')",
        "PermissionError: [Errno 1]",
    ),
    "internet": ("import socket; socket.create_connection(('1.1.1.1', 53), 1)", "OSError: [Errno 101]"),
    "name lookup": ("import socket; socket.getaddrinfo('example.org', 80)", "gaierror"),
    "fork": ("import os; os.fork()", "BlockingIOError: [Errno 11]"),
    "program": ("import subprocess; subprocess.run(['/bin/true'])", "BlockingIOError: [Errno 11]"),
    "namespaces": (
        "import ctypes\nif ctypes.CDLL(None).unshare(0x10000000): raise PermissionError",
        "PermissionError",
    ),
    "memory outside the limit": ("import os; os.memfd_create('x')", "PermissionError"),
    "signals": ("import os; os.kill(-1, 9)", "ProcessLookupError"),
    "third-party packages": ("import numpy", "ModuleNotFoundError"),
    "standard input": ("input()", "EOFError"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(sandbox, name):
    code, error = REFUSED[name]
    verdict = judged(sandbox, code)
    assert verdict.status == "failed"
    assert verdict.detail.startswith(error)


def test_the_environment_and_the_processes_are_its_own(sandbox, monkeypatch):
    monkeypatch.setenv("QEVAL_TEST_SECRET", "x")
    code = (
        "import os\n"
        "assert 'QEVAL_TEST_SECRET' not in os.environ\n"
        "assert {p for p in os.listdir('/proc') if p.isdigit()} == {'1', '2'}\n"
        "assert os.getuid() == 65534\n"
        "assert 'CapEff:\\t0000000000000000' in open('/proc/self/status').read()\n"
        "assert b'QEVAL_TEST_SECRET' not in open('/proc/1/environ', 'rb').read()\n"
    )
    assert judged(sandbox, code).detail == ""


def test_the_hosts_loopback_is_another(sandbox):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        verdict = judged(sandbox, f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)")
    assert verdict.detail.startswith("ConnectionRefusedError")


HOGS = {
    "loop": ("while True: pass", "timeout", "1 s"),
    "sleep": ("import time; time.sleep(60)", "timeout", "1 s"),
    "print": ("while True: print('x' * 100_000)", "timeout", "1 s"),
    "fork bomb": (
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "timeout",
        "1 s",
    ),
    "memory": ("x = bytearray(1 << 30)", "memory", "MemoryError"),
    "file": ("f = open('f', 'wb')\nwhile True: f.write(bytes(1 << 20))", "failed", "OSError: [Errno 2"),
    "files": (
        "for i in range(99): open(f'f{i}', 'wb').write(bytes(1 << 20))",
        "failed",
        "OSError: [Errno 28]",
    ),
    "descriptors": ("x = [open('/dev/null') for _ in range(999)]", "failed", "OSError: [Errno 24]"),
    "channel": (
        "import os\n"
        "for fd in range(3, 99):\n"
        "    try: os.write(fd, b'x' * (1 << 20))\n"
        "    except OSError: pass",
        "output",
        "more than 65536 bytes",
    ),
    "crash": ("import ctypes; ctypes.string_at(0)", "killed", "signal 11"),
    "threads": (
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,)).start()",
        "failed",
        "RuntimeError: can't start new thread",
    ),
}


@pytest.mark.parametrize("name", HOGS)
def test_contained(sandbox, name):
    code, status, detail = HOGS[name]
    verdict = judged(sandbox, code)
    assert verdict.status == status
    assert verdict.detail.startswith(detail)
    assert verdict.seconds < 3


def test_nothing_is_left_running(sandbox):
    marker = f"marker_{os.getpid()}_{time.monotonic_ns()}"
    list(sandbox.run([program("while True: pass", id=marker)] * 2, FAST, 2))
    deadline = time.monotonic() + 5
    while children() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert children() == []


def children() -> list[str]:
    out = subprocess.run(["ps", "-eo", "ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 1) for line in out.splitlines()[1:]]
    return [args for ppid, args in rows if int(ppid) == os.getpid() and "bwrap" in args]


def test_scratch_is_writable_empty_and_gone(sandbox):
    code = "import os, tempfile\nassert os.listdir() == []\nopen('x', 'w')\ntempfile.TemporaryFile()"
    assert judged(sandbox, code).passed
    assert judged(sandbox, code).passed


def test_honest_programs_may_print_use_threads_and_recurse(sandbox):
    code = (
        "import sys, threading\n"
        "def solve():\n"
        "    print('x' * 1_000_000); sys.stderr.write('y'); sys.stdin.read()\n"
        "    t = threading.Thread(target=print); t.start(); t.join()\n"
        "    def deep(n): return n and deep(n - 1)\n"
        "    return deep(900)\n"
    )
    verdict = judged(sandbox, code, test="def check(f): assert f() == 0\n", call="check(solve)")
    assert (verdict.status, verdict.detail) == ("passed", "")


def test_sets_and_random_draws_are_the_same_every_time(sandbox):
    code = "import random\nraise Exception(f'{list(set(map(str, range(9))))} {random.random()}')"
    assert len({judged(sandbox, code).detail for _ in range(3)}) == 1


def test_a_broken_bwrap_is_an_error_of_the_sandbox_and_not_of_the_program(tmp_path, monkeypatch):
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(SandboxError, match="did not start: bwrap: setting up uid map"):
        list(Bubblewrap().run([program("pass")], FAST, 1))
