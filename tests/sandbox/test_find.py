"""Which sandbox is chosen, and what is said where there is none."""

import pytest

from qeval.core.errors import SandboxError
from qeval.sandbox import Program, find_sandbox, pool
from qeval.sandbox.bubblewrap import Bubblewrap
from qeval.sandbox.kernel import KernelSandbox
from qeval.sandbox.weak import WeakSandbox

REFUSAL = "[Errno 1] unshare: Operation not permitted"


@pytest.fixture
def no_namespaces(monkeypatch):
    """A machine whose kernel refuses namespaces, with these programs in PATH."""

    def refuse(self):
        raise SandboxError(f"kernel: {REFUSAL}")

    def use(*tools: str) -> None:
        monkeypatch.setattr(KernelSandbox, "__init__", refuse)
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
def test_without_a_sandbox_the_error_names_the_reasons_and_the_fix(no_namespaces, tool, command):
    no_namespaces(tool)
    with pytest.raises(SandboxError) as caught:
        find_sandbox()
    message = str(caught.value)
    for part in (REFUSAL, "bubblewrap is not installed", command, "--allow-weak-sandbox"):
        assert part in message
    assert "\n" not in message


def test_weak_is_used_only_where_it_is_allowed_and_says_so(no_namespaces):
    no_namespaces()
    assert find_sandbox(weak=True).name == "weak"


@pytest.mark.parametrize("kind", [KernelSandbox, Bubblewrap])
def test_a_real_sandbox_is_preferred_even_where_weak_is_allowed(kind):
    try:
        kind()
    except SandboxError as err:
        pytest.skip(str(err))
    assert find_sandbox(weak=True).name in ("kernel", "bubblewrap")


def test_a_command_that_exists_but_does_not_work_is_not_chosen(tmp_path, monkeypatch, no_namespaces):
    no_namespaces()
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: no permissions' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda name: str(fake) if name == "bwrap" else None)
    with pytest.raises(SandboxError, match="bwrap: no permissions"):
        find_sandbox()
    assert find_sandbox(weak=True).name == "weak"


def test_a_sandbox_in_which_a_right_program_fails_is_refused(monkeypatch):
    monkeypatch.setattr(
        pool, "TRIAL", Program("trial", "def one(): return 2", "assert one() == 1", names=("one",))
    )
    with pytest.raises(SandboxError, match="a right program is judged failed: AssertionError"):
        WeakSandbox()


def test_a_required_wall_that_does_not_stand_is_named(monkeypatch):
    monkeypatch.setattr(
        WeakSandbox, "_try", lambda self: {"rlimits": "more than it should", "seccomp": ""}
    )
    with pytest.raises(SandboxError, match="weak: rlimits: more than it should"):
        WeakSandbox()


def test_a_required_wall_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(WeakSandbox, "_try", lambda self: {"seccomp": ""})
    with pytest.raises(SandboxError, match="weak: no rlimits"):
        WeakSandbox()


def test_a_wall_that_does_not_stand_is_not_in_the_record(monkeypatch):
    monkeypatch.setattr(WeakSandbox, "_try", lambda self: {"rlimits": "", "Landlock 7": "got through"})
    assert WeakSandbox().layers == ("rlimits",)
