"""Verdicts, in the backend that every machine has; the walls are tested in test_bubblewrap.py."""

from itertools import count

import pytest

from qeval.sandbox import Limits, Program
from qeval.sandbox.weak import WeakSandbox

BOX = WeakSandbox()
FAST = Limits(timeout_s=1.0, memory_bytes=1 << 30)
TEST = "def check(f):\n    assert f(1) == 2\n"
RIGHT = "def f(x):\n    return x + 1"


def judged(code: str, call: str = "check(f)"):
    [verdict] = BOX.run([Program("p", code, TEST, call)], FAST, 1)
    assert verdict.id == "p"
    assert verdict.sandbox == "weak"
    return verdict.status, verdict.detail


def test_a_right_program_passes():
    assert judged(RIGHT) == ("passed", "")


FORGERIES = {
    "os._exit": "import os; os._exit(0)",
    "sys.exit": "import sys; sys.exit()",
    "sys.exit(0)": "import sys; sys.exit(0)",
    "SystemExit": "raise SystemExit",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "print": "print('passed'); import os; os._exit(0)",
    "print in the function": "def f(x):\n    print('passed')\n    raise SystemExit",
    "write to every descriptor": (
        "import os\n"
        "for fd in range(1, 64):\n"
        "    try: os.write(fd, b'passed\\n passed\\npassed\\t\\n')\n"
        "    except OSError: pass\n"
        "os._exit(0)"
    ),
    "close every descriptor": "import os; os.closerange(0, 64); os._exit(0)",
    "replace the writer": "import os\nos.write = lambda *a: 0\nraise ValueError",
    "exit by thread": "import threading, os\nthreading.Timer(0.1, os._exit, (0,)).start()\nwhile 1: 0",
    "exit in atexit": "import atexit, os; atexit.register(os._exit, 0); raise ValueError",
    "swallow the test": "def f(x): return 2\ndef check(f): pass\n'''",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_no_other_end_is_a_pass(name):
    status, _ = judged(FORGERIES[name])
    assert status in ("failed", "syntax")


ENDS = {
    "wrong": ("def f(x): return x", "failed", "AssertionError:"),
    "missing": ("", "failed", "NameError: name 'f' is not defined"),
    "syntax": ("def f(x) return x", "syntax", "SyntaxError: expected ':' (<program>, line 1)"),
    "null byte": ("x = '\0'", "syntax", "source code string cannot contain null bytes"),
    "lone surrogate": ("x = '\ud800'", "syntax", "UnicodeEncodeError"),
    "syntax error at run time": ("exec('(')", "failed", "SyntaxError"),
    "loop": ("while True: pass", "timeout", "1 s"),
    "memory": ("x = bytearray(1 << 31)", "memory", "MemoryError:"),
    "recursion": ("def f(x): return f(x)", "failed", "RecursionError"),
    "crash": ("import ctypes; ctypes.string_at(0)", "killed", "signal 11"),
    "exit code": ("import os; os._exit(7)", "failed", "exit 7 before the end of the test"),
    "long message": ("raise Exception('x' * 10_000)", "failed", "Exception: xxx"),
    "message of many lines": ("raise Exception('a\\n\\tb')", "failed", "Exception: a b"),
    "bad message": (
        "class E(Exception):\n    def __str__(self): raise SystemExit\nraise E",
        "failed",
        "E",
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_status_and_detail(name):
    code, status, detail = ENDS[name]
    found = judged(code)
    assert found[0] == status
    assert detail in found[1]
    assert len(found[1]) <= 200
    assert "\n" not in found[1]


def test_the_main_block_is_not_run_and_the_module_is_importable_by_name():
    guard = "if __name__ == '__main__':\n    raise Exception\n"
    data = "from dataclasses import dataclass\n@dataclass\nclass D:\n    x: 'int' = 1\n"
    assert judged(guard + data + RIGHT) == ("passed", "")


def test_a_backslash_at_the_end_joins_the_test_as_in_human_evals_program():
    assert judged(RIGHT + " \\\n")[0] == "passed"


def test_hooks_and_threads_do_not_delay_a_pass():
    hook = "import atexit, threading, time\natexit.register(time.sleep, 9)\n"
    thread = "threading.Thread(target=time.sleep, args=(9,)).start()\n"
    assert judged(hook + thread + RIGHT) == ("passed", "")


def test_every_program_gets_one_verdict_whatever_the_workers():
    programs = [Program(str(i), f"def f(x): return {i}", TEST, "check(f)") for i in range(9)]
    for workers in (1, 2, 4):
        verdicts = {v.id: v.status for v in BOX.run(programs, FAST, workers)}
        assert verdicts == {str(i): "passed" if i == 2 else "failed" for i in range(9)}


def test_programs_are_taken_only_as_fast_as_they_run():
    taken = []

    def endless():
        for i in count():
            taken.append(i)
            yield Program(str(i), RIGHT, TEST, "check(f)")

    verdicts = BOX.run(endless(), FAST, 2)
    for _ in range(3):
        assert next(verdicts).passed
    verdicts.close()
    assert len(taken) < 12


def test_no_programs_no_verdicts():
    assert list(BOX.run([], FAST, 2)) == []
