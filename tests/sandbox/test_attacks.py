"""Every hostile program of attacks/, in the sandbox of this machine.

All of them run once, each with an honest program behind it in the same lane, against a host with
secrets, listeners and a process to get at (attacks/_host.py); the tests below look at what came of it.
The same again as an ordinary user, where the tests run as root. That an attack is one is shown by
running it without a sandbox (``in the open``).

A machine without a sandbox skips; with QEVAL_REQUIRE_SANDBOX=1 it fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from qeval.core.errors import SandboxError
from qeval.sandbox import Program, Sandbox, Verdict, find_sandbox

sys.path.insert(0, str(Path(__file__).parent))
from attacks import ATTACKS, LIMITS, Attack, _host

REPO = Path(__file__).parents[2]
ORDINARY = 12345  # a user that no machine has; no name or home is needed
LONGEST_S = 100.0  # that any verdict may take, of a limit of 1 s and on a machine however loaded
NAMES = sorted(ATTACKS)


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    try:
        return find_sandbox()
    except SandboxError as err:
        if os.environ.get("QEVAL_REQUIRE_SANDBOX"):
            raise
        pytest.skip(str(err))


@pytest.fixture(scope="module")
def report(sandbox: Sandbox) -> _host.Report:
    return _host.run_all(sandbox, list(ATTACKS.values()))


@pytest.fixture(scope="module")
def ordinary(sandbox: Sandbox) -> Iterator[_host.Report]:
    """The same run as a user without any rights, in a process of its own."""
    if os.getuid() != 0:
        pytest.skip("the tests run as an ordinary user already")
    with tempfile.TemporaryDirectory(prefix="ordinary-") as home:
        os.chown(home, ORDINARY, ORDINARY)
        done = as_ordinary_user(home, readable_interpreter(home), str(Path(_host.__file__)))
        assert done.returncode == 0, done.stderr
        yield _host.Report.from_json(done.stdout)


def readable_interpreter(home: str) -> str:
    """A Python that the ordinary user may run, with the repository."""
    version = f"python3.{sys.version_info.minor}"
    for name in (sys.executable, version, "python3"):
        python = shutil.which(name, path="/usr/local/bin:/usr/bin")
        with suppress(PermissionError):
            if python and as_ordinary_user(home, python, "-c", "import qeval.sandbox").returncode == 0:
                return python
    pytest.skip(f"user {ORDINARY} can run no Python that imports qeval from {REPO}")


def as_ordinary_user(home: str, python: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-B", *words],
        user=ORDINARY,
        group=ORDINARY,
        extra_groups=[],
        cwd=home,
        env={"HOME": home, "TMPDIR": home, "PYTHONPATH": f"{REPO}{os.pathsep}{Path(__file__).parent}"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("name", NAMES)
def test_contained(report: _host.Report, name: str):
    verdict = report.verdicts[name]
    assert ATTACKS[name].contained(verdict), f"{verdict.text}: {verdict.detail}"


@pytest.mark.parametrize("name", NAMES)
def test_the_next_program_finds_nothing_changed(report: _host.Report, name: str):
    verdict = report.verdicts[f"after {name}"]
    assert verdict.passed, f"{verdict.text}: {verdict.detail}"


def test_nothing_of_the_host_was_reached(report: _host.Report):
    assert report.hits == []


def test_nothing_is_left_behind(report: _host.Report):
    assert report.leaks == []


def test_no_verdict_is_long_in_coming(report: _host.Report):
    assert {name: s for name, s in report.waited.items() if s > LONGEST_S} == {}


def test_every_detail_is_one_short_line_that_a_terminal_can_show(report: _host.Report):
    shown = {name: verdict.detail for name, verdict in report.verdicts.items()}
    assert {n: d for n, d in shown.items() if not d.isprintable() or len(d) > 200} == {}


def test_an_ordinary_user_is_as_safe(ordinary: _host.Report):
    assert ordinary.user == ORDINARY
    found = {
        name: f"{ordinary.verdicts[name].text}: {ordinary.verdicts[name].detail}"
        for name, attack in ATTACKS.items()
        if not attack.contained(ordinary.verdicts[name])
    }
    after = {
        name: f"{verdict.text}: {verdict.detail}"
        for name, verdict in ordinary.verdicts.items()
        if name.startswith("after ") and not verdict.passed
    }
    slow = {name: s for name, s in ordinary.waited.items() if s > LONGEST_S}
    assert (found, after, slow, ordinary.hits, ordinary.leaks) == ({}, {}, {}, [], [])


# -- the tests of the tests --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def open_host() -> Iterator[_host.Host]:
    with _host.Host() as host:
        yield host


@pytest.mark.parametrize("name", [name for name in NAMES if ATTACKS[name].in_the_open])
def test_without_a_sandbox_it_succeeds(open_host: _host.Host, name: str, tmp_path: Path):
    attack = ATTACKS[name]
    if attack.in_the_open == "as root" and os.getuid() != 0:
        pytest.skip("needs root to succeed even there")
    done = subprocess.run(
        [sys.executable, "-c", _host.in_the_open(attack, open_host.target())],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-500:]


def test_a_hit_is_seen():
    with _host.Host() as host:
        assert host.hits() == []
        target, secret = host.target(), Verdict("x", "failed", f"E: {host.secret}", 0.1, "kernel")
        code = ATTACKS["net_tcp_loopback"].code(target) + "\nattack()"
        subprocess.run([sys.executable, "-c", code], check=True)
        os.kill(host.victim.pid, 10)
        hits = host.hits([secret])
        assert [hit.split()[0] for hit in hits[:2]] == ["x", "tcp"]
        os.kill(host.victim.pid, 19)
        os.waitid(os.P_PID, host.victim.pid, os.WSTOPPED | os.WNOWAIT)  # a signal takes its time
        assert "stopped" in str(host.hits())
        host.victim.kill()
        host.victim.wait()
        assert "died" in str(host.hits())


def test_what_is_left_is_seen(tmp_path: Path):
    before = _host.belongings()
    (Path(tempfile.gettempdir()) / "hostile-file").touch()
    with subprocess.Popen(["sleep", "60"]) as process, (tmp_path / "x").open("w"):
        found = _host.leaks(before, patience_s=0.0)
        process.kill()
    (Path(tempfile.gettempdir()) / "hostile-file").unlink()
    assert [line.split(":")[0] for line in found] == ["descriptors", "files", "processes"]
    assert _host.leaks(before) == []


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("open('/tmp/x', 'x')", "scratch"),
        ("os.environ['X'] = '1'", "environment"),
        ("os.umask(0o77)", "umask"),
        ("os.dup(0)", "descriptors"),
        ("signal.signal(10, print)", "handlers"),
        ("threading.Thread(target=threading.Event().wait, daemon=True).start()", "threads"),
        ("import colorsys", "modules"),
        ("os.chmod('/tmp', 0o755)", "folder"),
    ],
)
def test_a_change_is_seen_by_the_honest_program(sandbox: Sandbox, change: str, part: str):
    honest = _host.honest("x", _host.fresh_state(sandbox))
    changed = Program("x", f"{honest.code}\n{change}", honest.test, honest.call, names=honest.names)
    [right, wrong] = [v for program in (honest, changed) for v in sandbox.run([program], LIMITS, 1)]
    assert right.passed, right.detail
    assert wrong.detail.startswith(f"AssertionError: {part} is")


def test_where_the_walls_do_not_stand_no_attack_is_run():
    class NoWalls:
        name, layers = "none", ()
        ran: list[str] = []  # noqa: RUF012

        def run(self, programs, limits, workers):
            for program in programs:
                self.ran.append(program.id)
                yield Verdict(program.id, "failed", "Escaped: sees a secret", 0.0, self.name)

    with pytest.raises(AssertionError, match="do not stand"):
        _host.run_all(NoWalls(), list(ATTACKS.values()))
    assert NoWalls.ran == ["probe"]


def test_a_verdict_that_shows_an_escape_is_never_contained():
    attack = Attack("x", "", "attack", ("passed", "failed"), "")
    forgery = Attack("x", "", "solve", ("passed", "failed"), "")
    escaped, passed = (
        Verdict("x", status, detail, 0.0, "kernel")
        for status, detail in (("failed", "Escaped: root"), ("passed", ""))
    )
    assert not attack.contained(escaped) and attack.contained(passed)
    assert not forgery.contained(passed)
