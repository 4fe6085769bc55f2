"""Where jobs run: an executor takes a job and returns its result.

LocalExecutor starts one worker process at a time on this machine, in a process group of its own, and
kills the whole group on a timeout or an interrupt; guard.py does so where this process was killed.
Another place to run is another class with ``run``.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Protocol

from qeval.core import guard
from qeval.core.cores import waiting
from qeval.core.files import write_atomic
from qeval.jobs.job import Job, JobResult, Stopwatch

OnProgress = Callable[[int, int, str], None]

_POLL_S = 0.2
_OOM_HINT = "the kernel's out-of-memory killer, or kill -9"


class Executor(Protocol):
    def run(self, job: Job, timeout: float | None, on_progress: OnProgress) -> JobResult: ...


class LocalExecutor:
    """Runs workers of this interpreter; ``folder`` keeps job files and logs, a pair a key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, job: Job, timeout: float | None, on_progress: OnProgress) -> JobResult:
        """Start a fresh worker and wait. Never raises for what the worker does; KeyboardInterrupt
        passes through after the worker's group is dead."""
        stem = self.folder / f"{job.kind}-{job.key[:16]}"
        job_file, result_file = stem.with_suffix(".job.json"), stem.with_suffix(".result.json")
        log_file = stem.with_suffix(".log")
        write_atomic(job_file, job.to_json())
        result_file.unlink(missing_ok=True)
        watch = Stopwatch()
        read_fd, write_fd = os.pipe()
        with log_file.open("wb") as log, os.fdopen(read_fd, "rb", buffering=0) as progress:
            argv = [str(job_file), str(result_file), str(write_fd)]
            process = guard.start(
                [str(job.python or sys.executable), "-m", "qeval.worker", *argv],
                stdout=log,
                stderr=log,
                pass_fds=(write_fd,),
                env=_environment(job),
            )
            os.close(write_fd)
            try:
                timed_out = _wait(process, progress, timeout, on_progress)
            finally:
                guard.stop(process)
        result = _collect(process.returncode, result_file, log_file, timeout if timed_out else None)
        return replace(
            result,
            timing={**watch.timing(), **result.timing, "wall_s": watch.seconds()},
            log=str(log_file),
        )


def _environment(job: Job) -> dict[str, str]:
    """The worker finds this qeval wherever it was started, and tokenizers do not warn about forks.

    In another environment it must find nothing else of this one: there the path is a folder with a
    link to the package alone.
    """
    if job.python is None:
        path = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    else:
        from qeval.envs.build import worker_path

        path = [str(worker_path(job.cache_dir))]
    return {
        **os.environ,
        **waiting(),
        "PYTHONPATH": os.pathsep.join(path),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "GGML_NO_BACKTRACE": "1",  # ggml's abort would start a debugger, and the log end in its words
    }


def _wait(
    process: subprocess.Popen[bytes], progress: FileIO, timeout: float | None, on_progress: OnProgress
) -> bool:
    """Pass progress lines on until the worker ends; True where the timeout ended the wait."""
    deadline = None if timeout is None else time.monotonic() + timeout
    buffer = b""
    with selectors.DefaultSelector() as selector:
        selector.register(progress, selectors.EVENT_READ)
        while process.poll() is None:
            if deadline is not None and time.monotonic() > deadline:
                return True
            if not selector.select(_POLL_S):
                continue
            chunk = progress.read(65536)
            if not chunk:  # the worker closed it: it is about to end
                selector.unregister(progress)
                return _wait_closed(process, deadline)
            *lines, buffer = (buffer + chunk).split(b"\n")
            if lines:
                on_progress(*json.loads(lines[-1]))
    return False


def _wait_closed(process: subprocess.Popen[bytes], deadline: float | None) -> bool:
    try:
        process.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return True
    return False


def _collect(code: int, result_file: Path, log_file: Path, timeout: float | None) -> JobResult:
    """The worker's own result; where it left none, what its end says, with the log's last lines."""
    if timeout is not None:
        return JobResult("timeout", f"stopped after the timeout of {timeout:g} s")
    try:
        return JobResult(**json.loads(result_file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        tail = " | ".join(_tail(log_file))
    if code < 0:
        name = signal.Signals(-code).name
        hint = f" ({_OOM_HINT})" if -code == signal.SIGKILL else ""
        return JobResult(
            "killed", f"worker killed by {name}{hint}{'; last lines: ' + tail if tail else ''}"
        )
    return JobResult("failed", f"worker ended with exit code {code} and no result; last lines: {tail}")


def _tail(path: Path, n: int = 3) -> list[str]:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()][-n:]
