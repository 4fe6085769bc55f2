"""`qeval doctor` says what was tried and what came of it."""

import json

import pytest

from qeval import doctor
from qeval.errors import SandboxError
from qeval.sandbox.weak import WeakSandbox


@pytest.fixture(scope="module")
def report() -> doctor.Report:
    return doctor.examine()


def test_every_backend_is_there_with_its_walls(report):
    assert [b.name for b in report.backends] == ["kernel", "bubblewrap", "weak"]
    for backend in report.backends:
        assert backend.works == (not backend.error)
        if backend.works:
            assert backend.walls["rlimits"] == ""
            assert backend.ms_per_program > 0


def test_the_weak_one_is_never_chosen(report):
    assert report.chosen != "weak"
    assert not report.backends[-1].safe


def test_text_and_json_say_the_same(report):
    data = json.loads(json.dumps(report.to_json()))
    assert data["chosen"] == report.chosen
    text = report.text()
    for backend in report.backends:
        assert f"sandbox {backend.name}: {'works' if backend.works else 'does not work'}" in text


def test_a_machine_without_a_sandbox_is_told_what_to_do(monkeypatch):
    class Broken(WeakSandbox):
        name = "kernel"

        def __init__(self) -> None:
            raise SandboxError("kernel: unshare: Operation not permitted")

    monkeypatch.setattr(doctor, "BACKENDS", (Broken,))
    found = doctor.examine()
    assert found.chosen is None
    assert "unshare: Operation not permitted" in found.text()
    assert "no sandbox for generated code" in found.text()
