"""Cores and threads: affinity, containers' quotas, OMP_NUM_THREADS."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qeval.core import cores


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A machine of ``n`` cores whose control groups hold the given files."""

    def make(n: int, own_groups: str, files: dict[str, str]) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(n)), raising=False)
        monkeypatch.setattr(cores, "CGROUPS", tmp_path / "cgroup")
        monkeypatch.setattr(cores, "OWN_GROUPS", tmp_path / "own")
        (tmp_path / "own").write_text(own_groups)
        for name, text in files.items():
            file = tmp_path / "cgroup" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    return make


@pytest.mark.parametrize(
    ("own_groups", "files", "expected"),
    [
        ("0::/\n", {}, 16),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 16),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 3),  # 2.5 cores
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "400000 100000\n"}, 4),
        ("0::/a\n", {"a/cpu.max": "10000 100000\n"}, 1),
        ("0::/a\n", {"a/cpu.max": "9900000 100000\n"}, 16),
        ("3:cpu,cpuacct:/q\n", {"cpu/q/cpu.cfs_quota_us": "-1", "cpu/q/cpu.cfs_period_us": "1"}, 16),
        (
            "2:memory:/m\n3:cpu,cpuacct:/q\n",
            {"cpu/q/cpu.cfs_quota_us": "200000", "cpu/q/cpu.cfs_period_us": "100000"},
            2,
        ),
    ],
)
def test_a_quota_counts_as_cores(machine, own_groups, files, expected):
    machine(16, own_groups, files)
    assert cores.usable_cores() == expected


def test_what_the_user_says_of_waiting_holds(monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    assert cores.waiting() == {"GOMP_SPINCOUNT": "1000"}
    for name, value in (("GOMP_SPINCOUNT", "5"), ("OMP_WAIT_POLICY", "ACTIVE")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert cores.waiting() == {}


@pytest.mark.parametrize(
    ("asked", "variable", "expected"),
    [
        (None, None, 8),
        (3, None, 3),
        (100, None, 8),
        (None, "2", 2),
        (None, "2,1", 2),
        (None, "64", 8),
        (None, "", 8),
        (None, "0", 8),
        (4, "2", 4),  # what the spec says goes before the environment
    ],
)
def test_threads_never_outnumber_the_cores(machine, monkeypatch, asked, variable, expected):
    machine(8, "", {})
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert cores.threads(asked) == expected
