"""The machine's name, and how busy others keep it."""

from __future__ import annotations

import os
import socket
import time

import pytest

from qeval.core import machine


def test_a_host_is_called_as_the_environment_says_or_without_its_domain(monkeypatch):
    monkeypatch.delenv("QEVAL_HOST", raising=False)
    monkeypatch.setattr(socket, "gethostname", lambda: "laptop.fritz.box")
    assert machine.host() == "laptop"
    monkeypatch.setenv("QEVAL_HOST", " ci-large ")
    assert machine.host() == "ci-large"


def test_others_are_all_busy_cores_but_this_process_and_a_hypervisor_is_another(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    own = [
        os.times_result((1.0, 0.5, 0.0, 0.5, 0)),
        os.times_result((3.0, 0.5, 1.0, 0.5, 0)),
    ]  # 2 s, 5 s
    clock = [10.0, 12.0]
    lines = ["cpu 100 0 100 9999 77 0 0 50 33 0", "cpu 500 50 150 9999 99 20 10 170 55 0"]  # + 6.5 s
    monkeypatch.setattr(machine, "STAT", tmp_path / "stat")
    monkeypatch.setattr(os, "times", lambda: own.pop(0))
    monkeypatch.setattr(time, "monotonic", lambda: clock.pop(0))
    (tmp_path / "stat").write_text(lines[0] + "\n")
    load = machine.Load()
    (tmp_path / "stat").write_text(lines[1] + "\n")
    found = load.stop()
    assert found["others"] == pytest.approx((6.5 - 3.0) / 2.0)
    assert {"load_before", "load_after"} < found.keys()


def test_a_system_that_does_not_say_gives_none(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "STAT", tmp_path / "absent")
    assert machine.Load().stop()["others"] is None
