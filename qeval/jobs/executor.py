"""Where jobs run: an executor takes a job and returns its result.

LocalExecutor has one worker process at a time on this machine, in a process group of its own, and
kills the whole group on a timeout or an interrupt; guard.py does so where this process was killed. A
cell on the CPU whose engine has ``shared_imports`` is a fork of a process that has them (zygote.py);
any other job starts an interpreter.
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
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from qeval.core import guard
from qeval.core.cores import waiting
from qeval.core.files import write_atomic
from qeval.engines.base import ENGINES
from qeval.jobs.job import Job, JobResult, Stopwatch
from qeval.jobs.zygote import Zygote
from qeval.plan.cells import device_kind

OnProgress = Callable[[int, int, str], None]

_POLL_S = 0.2
_OOM_HINT = "the kernel's out-of-memory killer, or kill -9"


class Executor(Protocol):
    def run(self, job: Job, timeout: float | None, on_progress: OnProgress) -> JobResult: ...


class LocalExecutor:
    """Runs workers of this interpreter; ``folder`` keeps job files and logs, a pair a key. Use it in a
    ``with``, or close it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._zygotes: dict[str, _Kept] = {}  # by what they import

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End what was kept for further jobs."""
        while self._zygotes:
            self._zygotes.popitem()[1].zygote.close()

    def run(self, job: Job, timeout: float | None, on_progress: OnProgress) -> JobResult:
        """Give the job a process of its own and wait. Never raises for what the worker does;
        KeyboardInterrupt passes through after the worker's group is dead."""
        stem = self.folder / f"{job.kind}-{job.key[:16]}"
        job_file, result_file = stem.with_suffix(".job.json"), stem.with_suffix(".result.json")
        log_file = stem.with_suffix(".log")
        write_atomic(job_file, job.to_json())
        result_file.unlink(missing_ok=True)
        watch = Stopwatch()
        read_fd, write_fd = os.pipe()
        with log_file.open("wb") as log, os.fdopen(read_fd, "rb", buffering=0) as progress:
            try:
                process = self._start(job, [str(job_file), str(result_file)], log, write_fd, timeout)
            finally:
                os.close(write_fd)
            try:
                timed_out = _wait(process, progress, timeout, on_progress)
            finally:
                guard.stop(process)
        code = process.wait()
        result = _collect(code, result_file, log_file, timeout if timed_out else None)
        return replace(
            result,
            timing={**watch.timing(), **result.timing, "wall_s": watch.seconds()},
            log=str(log_file),
        )

    def _start(
        self, job: Job, argv: list[str], log: BufferedWriter, progress: int, timeout: float | None
    ) -> guard.Command:
        env = _environment(job)
        zygote = self._zygote(job, env)
        if zygote is not None and zygote.ready(timeout):
            process = zygote.fork(argv, log.fileno(), progress)
            if process is not None:
                return process
        return guard.start(
            [str(job.python or sys.executable), "-m", "qeval.worker", *argv, str(progress)],
            stdout=log,
            stderr=log,
            pass_fds=(progress,),
            env=env,
        )

    def _zygote(self, job: Job, env: dict[str, str]) -> Zygote | None:
        """The one that has what the job imports, started now or before under the same conditions."""
        if job.kind == "build" or job.artifact is None or job.python or sys.platform != "linux":
            return None
        name = job.artifact.engine
        modules: str | None = getattr(ENGINES[name], "shared_imports", None)
        if modules is None or device_kind(name, job.settings.device) == "cuda":  # forks untested there
            return None
        conditions = (env, job.settings.n_threads, Path.cwd())
        kept = self._zygotes.get(modules)
        if kept is not None and kept.conditions != conditions:
            self._zygotes.pop(modules).zygote.close()
            kept = None
        if kept is None:
            log = self.folder / f"imports-{modules.rpartition('.')[2]}.log"
            kept = _Kept(Zygote(modules, job.settings.n_threads, env, log), conditions)
            self._zygotes[modules] = kept
        return kept.zygote


class _Kept(NamedTuple):
    zygote: Zygote
    conditions: tuple[object, ...]  # what its imports may have read


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
    process: guard.Command, progress: FileIO, timeout: float | None, on_progress: OnProgress
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


def _wait_closed(process: guard.Command, deadline: float | None) -> bool:
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
