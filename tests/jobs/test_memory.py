"""Peak memory: RAM of a fresh process, VRAM through NVML (here with a stand-in for the driver)."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from qeval.jobs import memory
from qeval.jobs.memory import VramSampler, peak_rss


def test_peak_rss_sees_what_was_freed_again_and_nothing_of_the_parent():
    block = bytearray(300 * 2**20)  # the parent is large
    code = (
        "from qeval.jobs.memory import peak_rss\n"
        "before = peak_rss(); x = bytearray(100 * 2**20); del x; print(before, peak_rss())"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    before, after = map(int, out.split())
    assert len(block) > before
    assert 95 * 2**20 <= after - before < 130 * 2**20
    assert peak_rss() > 300 * 2**20


class Driver:
    """NVML as far as qeval uses it: two cards, processes by id."""

    NVMLError = OSError

    def __init__(self, pid: int):
        self.pid, self.used, self.other = pid, 0, 50

    def nvmlInit(self): ...
    def nvmlDeviceGetCount(self):
        return 2

    def nvmlDeviceGetHandleByIndex(self, i):
        return i

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if not uuid.startswith("GPU-"):
            raise self.NVMLError(uuid)
        return 1

    def nvmlDeviceGetMemoryInfo(self, card):
        return SimpleNamespace(used=self.used + self.other)

    def nvmlDeviceGetComputeRunningProcesses(self, card):
        mine = [SimpleNamespace(pid=self.pid, usedGpuMemory=self.used)] if self.used else []
        return [SimpleNamespace(pid=1, usedGpuMemory=999), *mine]


@pytest.fixture(autouse=True)
def no_card_is_hidden(monkeypatch):
    monkeypatch.setattr(memory, "gpu_uuids", lambda: ())


@pytest.mark.parametrize(
    ("uuids", "peak"), [(("GPU-b",), 700), (("MIG-b",), 1400)], ids=["one of two", "unknown"]
)
def test_only_cards_that_the_process_sees_are_sampled(monkeypatch, uuids, peak):
    driver = Driver(os.getpid())
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(memory, "gpu_uuids", lambda: uuids)
    sampler = VramSampler(interval=0.005)
    sampler.start()
    driver.used = 700
    assert sampler.stop() == peak


@pytest.mark.parametrize("own_group", [False, True], ids=["started by it", "another's"])
def test_processes_of_its_group_are_its_own(monkeypatch, own_group):
    with subprocess.Popen(["sleep", "60"], start_new_session=own_group) as other:
        monkeypatch.setitem(sys.modules, "pynvml", driver := Driver(other.pid))
        sampler = VramSampler(interval=0.005)
        sampler.start()
        driver.used = 10
        assert sampler.stop() == 20
        other.kill()
    assert sampler.source == ("nvml device growth" if own_group else "nvml process")


@pytest.mark.parametrize(
    ("pid", "source"),
    [(os.getpid(), "nvml process"), (12345678, "nvml device growth")],
    ids=["own", "other"],
)
def test_the_sampler_keeps_the_peak_of_all_cards(monkeypatch, pid, source):
    driver = Driver(pid)
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    sampler = VramSampler(interval=0.005)
    sampler.start()
    for used in (100, 700, 300):
        driver.used = used
        deadline = time.monotonic() + 10
        while sampler.peak < 2 * used and time.monotonic() < deadline:
            time.sleep(0.005)
    assert sampler.stop() == 1400
    assert sampler.source == source


def test_without_a_driver_nothing_is_claimed(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    sampler = VramSampler()
    sampler.start()
    assert sampler.stop() is None
    assert sampler.source == ""


def test_a_card_that_was_not_used_is_no_number(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", Driver(os.getpid()))
    sampler = VramSampler(interval=0.005)
    sampler.start()
    time.sleep(0.02)
    assert sampler.stop() is None
