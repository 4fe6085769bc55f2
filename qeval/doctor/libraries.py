"""The quantization libraries of this environment: installed or not, and whether they work here.

"Works" is found by trying (trials.py), each library in a process of its own: a crash, a hang or a
broken import is one line about that library. Nothing here imports torch.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from qeval.core import guard
from qeval.core.errors import MissingExtraError, with_class
from qeval.core.extras import require
from qeval.doctor.probe import Layer
from qeval.formats.base import Library, formats

TIMEOUT_S = 90.0  # of one library; the slowest import takes 10 to 30 s where the disk is slow
AT_ONCE = max(2, min(4, (os.cpu_count() or 1) // 2))
_POLL_S = 0.05

State = Literal["works", "partly", "broken", "missing", "not tried"]
Tell = Callable[[Sequence[str], int, int], None]
"""Called with the names under trial, how many are done, and how many there are."""


def known() -> list[Library]:
    """torch, what runs the formats, and llama.cpp."""
    return [
        Library("torch", "torch", "hf", ("torch",)),
        *(one.library for one in formats() if one.library),
        Library("llama.cpp", "llama-cpp-python", "gguf", ("llama_cpp", "gguf")),
    ]


@dataclass(frozen=True)
class Found:
    """One library as it is on this machine; plain data."""

    name: str
    version: str | None  # None: not installed
    state: State
    error: str = ""  # missing: with the command that installs it; broken: the first line of why
    device: str = ""  # where it was tried
    layers: tuple[Layer, ...] = ()
    notes: tuple[str, ...] = ()
    facts: Mapping[str, object] = field(default_factory=dict)
    seconds: float | None = None  # that trying it took, its import included


def version_of(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def look(libraries: Sequence[Library]) -> list[Found]:
    """What is installed, by looking; nothing is imported."""
    return [_looked(library) for library in libraries]


def _looked(library: Library) -> Found:
    found = Found(library.name, version_of(library.distribution), "not tried")
    try:
        require(library.extra, *library.modules)
    except MissingExtraError as err:
        return replace(found, state="missing", error=str(err))
    except Exception as err:  # a package that a module lies in does not import
        return replace(found, state="broken", error=with_class(err))
    return found


def examine(
    libraries: Sequence[Library], *, timeout: float = TIMEOUT_S, tell: Tell = lambda *_: None
) -> list[Found]:
    """The same, and each one that is there tried; the whole takes about 30 seconds on two cores."""
    looked = look(libraries)
    waiting = deque(found for found in looked if found.state == "not tried")
    tried: dict[str, Found] = {}
    total = len(waiting)
    running: list[_Trial] = []

    def say() -> None:
        tell([trial.found.name for trial in running], len(tried), total)

    with tempfile.TemporaryDirectory(prefix="qeval-doctor-") as folder:
        try:
            while waiting or running:
                while waiting and len(running) < AT_ONCE:
                    running.append(_Trial(waiting.popleft(), Path(folder), timeout))
                    say()
                time.sleep(_POLL_S)
                for trial in [t for t in running if t.ended()]:
                    running.remove(trial)
                    tried[trial.found.name] = trial.outcome()
                    say()
        finally:
            for trial in running:  # Ctrl-C
                guard.stop(trial.process)
            tell([], len(tried), total)
    return [tried.get(found.name, found) for found in looked]


class _Trial:
    """One library's process. It works in its own folder, since some libraries write into the current
    one."""

    def __init__(self, found: Found, folder: Path, timeout: float) -> None:
        self.found = found
        self._result = folder / found.name / "result.json"
        self._log = folder / f"{found.name}.log"
        self._timeout, self._timed_out = timeout, False
        self._result.parent.mkdir()
        self._start = time.monotonic()
        with self._log.open("wb") as log:
            self.process = guard.start(
                [sys.executable, "-P", "-m", "qeval.doctor.trials", found.name, str(self._result)],
                stdout=log,
                stderr=log,
                cwd=self._result.parent,
                env=_environment(),
            )

    def ended(self) -> bool:
        if self.process.poll() is None:
            self._timed_out = time.monotonic() - self._start > self._timeout
            return self._timed_out
        return True

    def outcome(self) -> Found:
        guard.stop(self.process)  # and whatever it left behind
        seconds = time.monotonic() - self._start
        return replace(self._outcome(), seconds=round(seconds, 2))

    def _outcome(self) -> Found:
        if self._timed_out:
            return self._broken(f"no answer in {self._timeout:g} s")
        try:
            result = json.loads(self._result.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return self._broken(_ended(self.process.returncode, _last_line(self._log)))
        return judged(self.found, result)

    def _broken(self, error: str) -> Found:
        return judged(self.found, {"error": error})


def judged(found: Found, result: dict[str, Any]) -> Found:
    """The library with what its trial wrote (a trials.Outcome, or an error)."""
    if "error" in result:
        return replace(found, state="broken", error=result["error"])
    layers = tuple(Layer(**layer) for layer in result["layers"])
    works = [not layer.error for layer in layers]
    state: State = "works" if all(works) else "partly" if any(works) else "broken"
    return replace(found, state=state, **{**result, "layers": layers, "notes": tuple(result["notes"])})


def _environment() -> dict[str, str]:
    """This qeval's own code, one thread, and nothing that downloads or compiles."""
    path = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "HF_HUB_OFFLINE": "1",
        "TORCHDYNAMO_DISABLE": "1",  # torch.compile, which GPTQModel asks for, hands back what it got
        "OMP_NUM_THREADS": "1",  # two trials at once, and times that can be compared
    }


def _ended(code: int, said: str) -> str:
    """How a process ended that left no result."""
    if code >= 0:
        return f"it ended with exit code {code}" + (f": {said}" if said else "")
    number = -code
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    hints = {
        "SIGILL": " (built for another processor)",
        "SIGKILL": " (the kernel's out-of-memory killer, or kill -9)",
    }
    return f"killed by {name}{hints.get(name, '')}"


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
