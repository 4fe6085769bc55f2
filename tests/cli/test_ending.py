"""How the program ends: one line and the right exit code, whoever closed or interrupted what."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

QEVAL = [sys.executable, "-m", "qeval"]
LAUNCHER = "import sys; from qeval.__main__ import main; sys.argv[:1] = ['qeval']; main()"


def shell(line: str, **kwargs) -> subprocess.CompletedProcess[str]:
    """A line of bash, in which $Q is the program."""
    program = " ".join(QEVAL)
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, env={**os.environ, "Q": program}, **kwargs
    )


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("$Q list engines >&-", 1, "qeval: standard output cannot be written (it is closed)"),
        ("$Q list engines >/dev/full", 1, "cannot be written (No space left on device)"),
        ("$Q --help >/dev/full", 1, "No space left on device"),
        ("$Q --help >&-", 1, "Bad file descriptor"),
        ("$Q list engines | head -c 1 >/dev/null; exit ${PIPESTATUS[0]}", 0, ""),
        ("$Q table nope >&- 2>&-", 1, ""),
        ("$Q list engines 2>&- >/dev/null", 0, ""),
        ("$Q list engines <&- >/dev/null", 0, ""),
        ("$Q list engines 2>/dev/full >/dev/null", 0, ""),
        ("$Q list methods | grep -q none:", 0, ""),
        ("$Q --help | head -c 1 >/dev/null; exit ${PIPESTATUS[0]}", 0, ""),
        ("PYTHONIOENCODING=ascii $Q list methods >/dev/null", 0, ""),
        ("$Q cache --cache-dir '~nosuchuser/x' list", 2, "qeval: ~nosuchuser/x: no such user"),
        ("$Q run $(printf 'a/%.0s' {1..3000})x.yaml", 2, "...: cannot be read (File name too long)"),
        ("$Q run toy.yaml --limit nope", 2, "Invalid value for '--limit': 'nope' is not"),
        ("$Q run toy.yaml --nope", 2, "No such option '--nope'"),
        ("$Q table", 2, "Missing argument 'RESULTS...' (`"),
    ],
)
def test_one_line_and_the_exit_code(line, code, message, tmp_path):
    done = shell(line, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == (1 if message else 0)


def test_without_a_home_directory(tmp_path):
    """As in a container that runs under an unknown uid: no HOME, and no entry in the list of users."""
    code = f"import pwd\ndef nobody(uid): raise KeyError(uid)\npwd.getpwuid = nobody\n{LAUNCHER}"
    env = {k: v for k, v in os.environ.items() if k not in ("HOME", "QEVAL_CACHE_DIR")}
    done = subprocess.run(
        [sys.executable, "-c", code, "cache", "list"], capture_output=True, text=True, env=env
    )
    assert done.returncode == 2
    assert done.stderr.startswith("qeval: ~/.cache: no such user, or no home directory (set HOME)")
    env["QEVAL_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", code, "cache", "list"], capture_output=True, text=True, env=env
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "moment",
    ["click", "qeval.cli.main", "qeval.cli.run", "qeval.plan.survey", "pydantic", "yaml", "open"],
)
def test_ctrl_c_while_it_starts(moment, tmp_path):
    """Interrupted at the import of a module, or in the middle of the command."""
    (tmp_path / "s.yaml").write_text("name: x\n")
    code = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {moment!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
if {moment!r} == "open":
    def hook(event, args):
        if event == "open" and str(args[0]).endswith("s.yaml"):
            os.kill(os.getpid(), signal.SIGINT)
    sys.addaudithook(hook)
{LAUNCHER}"""
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "s.yaml"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.startswith("qeval: interrupted")
    assert len(done.stderr.splitlines()) == 1


def test_an_interrupt_that_is_ignored_stays_so(tmp_path):
    """`qeval run &` in a script: Ctrl-C is for what runs in front."""
    code = f"import os, signal\n{LAUNCHER.replace('main()', 'os.kill(os.getpid(), 2); main()')}"
    done = subprocess.run(
        [sys.executable, "-c", code, "list", "engines"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_installed_program_begins_where_ctrl_c_is_caught():
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"qeval": "qeval.__main__:main"}
