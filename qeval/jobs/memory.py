"""Peak memory of this process (docs/protocols.md): RAM from the kernel, VRAM from the driver.

RAM is VmHWM, the peak resident set size of this process image: unlike getrusage's ru_maxrss it is not
inherited from the parent that spawned it. VRAM is what NVML reports for this process, and for those
that it started on other GPUs, sampled in the background because the driver keeps no peak.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from qeval.core.devices import gpu_uuids


def peak_rss() -> int | None:
    """Bytes; None where there is no /proc (then nothing is claimed)."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


class VramSampler:
    """Samples the memory of the devices that this process sees, every ``interval`` seconds until
    ``stop``.

    ``source`` says how it was read: of the processes of its group, or, where the driver's ids are
    another namespace's (containers), as the growth of the devices' used memory since the start.
    """

    def __init__(self, interval: float = 0.02) -> None:
        self.peak: int | None = None
        self.source = ""
        self._interval = interval
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._handles: list[object] = []

    def start(self) -> None:
        try:
            import pynvml

            pynvml.nvmlInit()
            self._handles = _seen(pynvml)
        except Exception:  # no package, no driver, no card: NVML raises its own many types
            return
        self._nvml = pynvml
        self._base = self._used()
        self.peak = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> int | None:
        """The peak in bytes over all devices; None without NVML or where no device was used."""
        if self._thread is None:
            return None
        self._sample()
        self._stop.set()
        self._thread.join()
        return self.peak or None

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self._sample()

    def _sample(self) -> None:
        mine = [
            p.usedGpuMemory or 0
            for h in self._handles
            for p in self._nvml.nvmlDeviceGetComputeRunningProcesses(h)
            if _is_ours(p.pid)
        ]
        if mine:
            now, self.source = sum(mine), "nvml process"
        elif self.source == "nvml process":
            return
        else:
            now = self._used() - self._base
            self.source = "nvml device growth" if now > 0 else self.source
        self.peak = max(self.peak or 0, now)

    def _used(self) -> int:
        return sum(int(self._nvml.nvmlDeviceGetMemoryInfo(h).used) for h in self._handles)


def _seen(nvml: Any) -> list[object]:
    """NVML's handles of the devices that CUDA sees; of all, where it does not say which."""
    if uuids := gpu_uuids():
        with suppress(nvml.NVMLError):  # parts of a device have names of their own
            return [nvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
    return [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]


def _is_ours(pid: int) -> bool:
    """A worker and what it starts are a group of their own (guard.py)."""
    try:
        return pid == os.getpid() or os.getpgid(pid) == os.getpgrp()
    except ProcessLookupError:
        return False
