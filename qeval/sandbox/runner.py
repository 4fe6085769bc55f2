"""The child inside the sandbox: read one request, run its program, report how it ended.

Started as ``python -s -S -B runner.py FD``. ``FD`` is a pipe that holds a secret, standard input a
marshalled request: ``code``, ``test``, ``call`` and ``limits`` (resource name -> value). What is
written to standard output, one line each:

    ready                       the program starts now
    <secret> passed             the call returned
    <status> TAB <detail>       anything else; needs no secret, for nobody gains from forging it

Only the first file descriptors lead to /dev/null while the program runs, so what it prints has no
reader. A program that finds the channel can write to it, but has to know the secret, which is in no
module, argument or environment variable; only walking the interpreter's frames would find it.
"""

from __future__ import annotations

import marshal
import os
import random
import resource
import sys
import types
from collections.abc import Callable

DETAIL_CHARS = 200


def main() -> None:
    with os.fdopen(int(sys.argv[1]), "rb") as pipe:
        secret = pipe.read()
    with os.fdopen(0, "rb", closefd=False) as stdin:
        request = marshal.load(stdin)
    report = _reporter(os.dup(1))
    _silence()
    for name, value in request["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    del sys.path[0], sys.argv[1:]
    random.seed(0)  # tests that draw their cases draw the same ones every time
    report(b"ready", False)
    report(_run(request["code"] + "\n" + request["test"], request["call"]) or secret + b" passed", True)


def _reporter(channel: int) -> Callable[[bytes, bool], None]:
    """Writes a line to the channel and perhaps ends the process; the program cannot replace the
    functions used, they are looked up before it runs."""
    write, leave = os.write, os._exit

    def report(line: bytes, end: bool) -> None:
        write(channel, line + b"\n")
        if end:
            leave(0)  # no atexit hooks, no waiting for threads

    return report


def _silence() -> None:
    """Point standard input, output and error to /dev/null."""
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def _run(source: str, call: str) -> bytes:
    """Empty if the call returned, else a line that says what happened instead."""
    module = types.ModuleType("program")  # not __main__: its "main" block is not part of the test
    sys.modules["program"] = module
    try:
        code = compile(source, "<program>", "exec", dont_inherit=True)
        last = compile(call, "<call>", "exec", dont_inherit=True)
    except Exception as err:  # ValueError: null bytes, RecursionError: nested too deeply, ...
        return _failure("syntax", err)
    try:
        exec(code, module.__dict__)
        exec(last, module.__dict__)
    except MemoryError as err:
        return _failure("memory", err)
    except BaseException as err:  # SystemExit and KeyboardInterrupt are ends before the end, too
        return _failure("failed", err)
    return b""


def _failure(status: str, err: BaseException) -> bytes:
    name = type(err).__name__
    try:
        text = f"{name}: {err}"
    except BaseException:  # __str__ is the program's own code, too
        text = name
    text = " ".join(text.split())[:DETAIL_CHARS]
    return f"{status}\t{text}".encode("utf-8", "backslashreplace")


if __name__ == "__main__":
    main()
