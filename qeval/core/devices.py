"""The devices of this machine, found without importing torch."""

from __future__ import annotations

import ctypes
import re
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from uuid import UUID

from qeval.core.errors import EngineError

CPUINFO = Path("/proc/cpuinfo")
_AMD_DRIVER = Path("/dev/kfd")


def device_name(value: str) -> str:
    """A device as a spec or an option names it. Raises ValueError for any other word."""
    if re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", value):
        return value
    raise ValueError("must be auto, cpu, cuda or cuda:N")


@cache
def gpus() -> tuple[str, ...]:
    """Names of the CUDA devices that a process sees (CUDA_VISIBLE_DEVICES counts), by the driver's own
    library; none where there is no driver. No memory of a device is taken."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    count, device, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    found = []
    for i in range(count.value):
        if cuda.cuDeviceGet(ctypes.byref(device), i) or cuda.cuDeviceGetName(name, len(name), device):
            return ()
        found.append(name.value.decode(errors="replace"))
    return tuple(found)


@cache
def gpu_uuids() -> tuple[str, ...]:
    """Of the same devices, in the same order: what NVML knows them by (``GPU-...``)."""
    if not gpus():
        return ()
    cuda = ctypes.CDLL("libcuda.so.1")
    found, device, raw = [], ctypes.c_int(), ctypes.create_string_buffer(16)
    for i in range(len(gpus())):
        if cuda.cuDeviceGet(ctypes.byref(device), i) or cuda.cuDeviceGetUuid(raw, device):
            return ()
        found.append(f"GPU-{UUID(bytes=raw.raw)}")
    return tuple(found)


@cache
def cpu_flags() -> frozenset[str]:
    """What the processor can do, in Linux's words (``avx512_bf16``); empty where the system does not
    say."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def torch_device(asked: str) -> str:
    """``cpu`` or ``cuda:N``: what torch will use for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        EngineError: a GPU is asked for, and torch has none here.
    """
    build = _torch_build()
    if build == "hip":  # of an AMD GPU libcuda knows nothing: whether it works is seen in the worker
        return _first(asked, _AMD_DRIVER.exists())
    if asked.startswith("cuda") and build == "cpu":
        raise EngineError(
            f"device {asked}: the installed torch computes on the CPU only: install one with CUDA "
            "(https://pytorch.org/get-started/locally), or use --device cpu"
        )
    return _cuda_device(asked, build == "cuda")


def llama_device(asked: str) -> str:
    """The same for the installed llama.cpp."""
    backends = _llama_backends()
    if asked.startswith("cuda") and not backends:
        raise EngineError(
            f"device {asked}: the installed llama-cpp-python was compiled for the CPU; use --device "
            "cpu, or rebuild it: CMAKE_ARGS=-DGGML_CUDA=on pip install --force-reinstall --no-deps "
            "llama-cpp-python"
        )
    if backends - {"cuda"}:  # Vulkan and others: whether there is a device is seen in the worker
        return _first(asked, True)
    return _cuda_device(asked, bool(backends))


def driver_device(asked: str) -> str:
    """The same by the driver alone, for a library of another environment.

    Raises:
        EngineError: a GPU is asked for, and this machine has none.
    """
    return _cuda_device(asked, True)


def _cuda_device(asked: str, able: bool) -> str:
    """``able``: the library was built for CUDA. Raises EngineError where the GPU is not there."""
    if not asked.startswith("cuda"):
        return _first(asked, able and bool(gpus()))
    index = int(asked.partition(":")[2] or 0)
    if not gpus():
        raise EngineError(
            f"device {asked}: this machine shows no CUDA GPU (nvidia-smi and CUDA_VISIBLE_DEVICES say "
            "why): use --device cpu"
        )
    if index >= len(gpus()):
        known = ", ".join(f"cuda:{i}" for i in range(len(gpus())))
        raise EngineError(f"device {asked}: this machine has {known} only")
    return f"cuda:{index}"


def _first(asked: str, has_gpu: bool) -> str:
    usual = "cuda:0" if has_gpu else "cpu"
    return {"auto": usual, "cuda": "cuda:0"}.get(asked, asked)


@cache
def _torch_build() -> str:
    """``cpu``, ``cuda`` or ``hip``: torch/version.py says it, which is read alone because importing
    torch takes seconds. ``cuda`` where it does not say."""
    found = find_spec("torch")
    if found is None or found.origin is None:
        return "cpu"
    version: object = None
    spec = spec_from_file_location("torch_version", Path(found.origin).with_name("version.py"))
    if spec is not None and spec.loader is not None:
        version = module_from_spec(spec)
        try:
            spec.loader.exec_module(version)
        except OSError:
            version = None
    if getattr(version, "hip", None):
        return "hip"
    return "cuda" if getattr(version, "cuda", "unknown") else "cpu"


@cache
def _llama_backends() -> frozenset[str]:
    """The kinds of GPU that llama.cpp was compiled for, from the names of its libraries."""
    found = find_spec("llama_cpp")
    if found is None or found.origin is None:
        return frozenset()
    names = {path.name.split(".")[0] for path in (Path(found.origin).parent / "lib").glob("*ggml-*")}
    kinds = {name.partition("ggml-")[2] for name in names}
    return frozenset(kind for kind in kinds if kind and not kind.startswith(("base", "cpu", "blas")))
