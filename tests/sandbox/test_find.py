"""Which sandbox is chosen, and what is said where there is none."""

import pytest

from qeval.errors import SandboxError
from qeval.sandbox import find, find_sandbox


@pytest.fixture
def without_bwrap(monkeypatch):
    def use(*tools: str) -> None:
        monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}" if name in tools else None)

    return use


@pytest.mark.parametrize(
    ("tool", "command"),
    [
        ("apt-get", "apt-get install bubblewrap"),
        ("dnf", "dnf install bubblewrap"),
        ("pacman", "pacman -S bubblewrap"),
        ("none", "install bubblewrap 0.8 or newer"),
    ],
)
def test_without_a_sandbox_the_error_names_the_fix(without_bwrap, tool, command):
    without_bwrap(tool)
    with pytest.raises(SandboxError) as caught:
        find_sandbox()
    message = str(caught.value)
    assert command in message
    assert "--allow-weak-sandbox" in message
    assert "\n" not in message


def test_weak_is_used_only_where_it_is_allowed_and_says_so(without_bwrap):
    without_bwrap()
    assert find_sandbox(weak=True).name == "weak"


def test_a_real_sandbox_is_preferred_even_where_weak_is_allowed():
    try:
        find_sandbox()
    except SandboxError as err:
        pytest.skip(str(err))
    assert find_sandbox(weak=True).name == "bubblewrap"


def test_a_command_that_exists_but_does_not_work_is_not_chosen(tmp_path, monkeypatch):
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: no permissions' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda name: str(fake) if name == "bwrap" else None)
    with pytest.raises(SandboxError, match="bwrap: no permissions"):
        find_sandbox()
    assert find_sandbox(weak=True).name == "weak"


def test_the_trial_program_can_fail():
    from qeval.sandbox import Limits, Program
    from qeval.sandbox.weak import WeakSandbox

    wrong = Program("trial", "def one(): return 2", find.TRIAL.test, find.TRIAL.call)
    [verdict] = WeakSandbox().run([wrong], Limits(), 1)
    assert not verdict.passed
