"""`qeval` in this process: what a user types, what is printed and the exit code. Processes of its own,
their pipes and signals are in tests/cli/test_ending.py."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from unittest import mock


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def qeval(*args: object, cwd: Path | None = None) -> Done:
    """``qeval ARGS`` by the program's own ``main``, in the folder ``cwd``. Variables and handlers of
    signals are afterwards what they were."""
    from qeval.cli.main import main

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    code = 0
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        paths = [Path(folder, name) for name in ("stdout", "stderr")]
        out, err = (stack.enter_context(path.open("w", encoding="utf-8")) for path in paths)
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        stack.enter_context(mock.patch.object(sys, "argv", ["qeval", *map(str, args)]))
        stack.enter_context(mock.patch.dict(os.environ))
        stack.enter_context(contextlib.chdir(cwd or Path.cwd()))
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        out.flush()
        err.flush()
        return Done(code, *(path.read_text(encoding="utf-8") for path in paths))
