"""`qeval env`: environments that are there whole or not at all, made by pip from packages of this file.

No index is asked. The environments hold one package, made on the spot, whose ``.pth`` file adds this
interpreter's packages (pydantic, numpy) and the test plugin, so that a worker can run in them.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import zipfile
from pathlib import Path

import pytest
from program import qeval

from qeval.core.artifact import ModelRef
from qeval.core.errors import EnvError, UsageError
from qeval.core.settings import EngineSettings
from qeval.envs import build as envs
from qeval.jobs.executor import LocalExecutor
from qeval.jobs.job import Job

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
REPO = Path(__file__).parents[2]
SHIPPED = envs.FOLDER


def wheel(folder: Path, name: str, version: str, **files: str) -> None:
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path.replace("__", "."), text)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


def sdist(folder: Path, name: str, marker: Path) -> None:
    """A source archive whose build writes its process's id and then waits."""
    backend = f"""
import os, time
def get_requires_for_build_wheel(config_settings=None): return []
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    open({str(marker)!r}, "w").write(str(os.getpid()))
    time.sleep(120)
"""
    project = '[build-system]\nrequires = []\nbuild-backend = "slow"\nbackend-path = ["."]\n'
    root = f"{name}-1.0"
    with zipfile.ZipFile(folder / f"{root}.zip", "w") as archive:
        archive.writestr(f"{root}/pyproject.toml", project)
        archive.writestr(f"{root}/slow.py", backend)
        archive.writestr(f"{root}/PKG-INFO", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")


def describe(folder: Path, name: str, **changes: object) -> None:
    told = {"about": "for a test", "python": [HERE], "module": "tinylib", "library": ["tinylib==1.0"]}
    lines = [f"{key} = {value!r}" for key, value in {**told, **changes}.items()]
    (folder / f"{name}.toml").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def links(tmp_path_factory):
    """Packages for pip, and nothing but them: no index, no settings of the machine."""
    folder = tmp_path_factory.mktemp("links")
    paths = [sysconfig.get_paths()["purelib"], str(REPO / "tests" / "plugin")]
    wheel(folder, "tinylib", "1.0", tinylib__py="here = 1\n", tinylib__pth="\n".join(paths) + "\n")
    wheel(folder, "tinylib", "2.0", tinylib__py="import gone_with_the_wind\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(folder))
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        yield folder


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    folder = tmp_path_factory.mktemp("described")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(envs, "FOLDER", folder)
        yield folder


@pytest.fixture(scope="module", autouse=True)
def by_pip():
    """uv is in test_uv.py, whatever this machine has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(envs, "uv_for", lambda *_: (None, ""))
        yield


@pytest.fixture(scope="module")
def ready(links, described, tmp_path_factory):
    """A cache with the environment ``tiny`` in it."""
    cache = tmp_path_factory.mktemp("cache")
    describe(described, "tiny")
    steps: list[str] = []
    made = envs.create("tiny", cache, say=steps.append)
    assert (made.state, made.error) == ("ready", "")
    assert any(step.startswith("importing tinylib") for step in steps)
    return cache


def test_the_message_has_the_command_that_makes_it(described, tmp_path):
    describe(described, "absent")
    with pytest.raises(UsageError) as raised:
        envs.python_of("absent", tmp_path)
    command = f"qeval env --cache-dir {tmp_path} create absent"
    assert str(raised.value) == f"the environment absent is missing: {command}"
    from qeval.cli.main import env

    assert shlex.split(command)[1] == env.name
    assert [word for word in shlex.split(command) if word in env.commands] == ["create"]
    with pytest.raises(UsageError, match="unknown environment 'abzent'; did you mean 'absent'"):
        envs.python_of("abzent", tmp_path)


def test_a_made_environment_runs_its_library_and_making_it_again_does_nothing(ready):
    python = envs.python_of("tiny", ready)
    done = subprocess.run([python, "-c", "import tinylib; print(tinylib.here)"], capture_output=True)
    assert done.stdout == b"1\n"
    marker = python.parents[1] / envs.MARKER
    before = marker.stat().st_mtime_ns
    assert envs.create("tiny", ready).state == "ready"
    assert marker.stat().st_mtime_ns == before
    (found,) = [e for e in envs.examine(ready) if e.name == "tiny"]
    assert found.works and found.error == "" and found.versions["tinylib"] == "1.0"
    assert found.python == sys.version.split()[0]
    assert 1e6 < found.n_bytes < 1e8  # pip alone is 10 MB


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="needs a virtual environment to run in")
def test_packages_of_a_virtual_environment_are_inherited(links, described, tmp_path):
    """PyYAML of the environment that runs the tests, whatever the interpreter below has."""
    wheel(links, "plainlib", "1.0", plainlib__py="import yaml\n")
    describe(described, "heir", module="plainlib", library=["plainlib==1.0"])
    assert envs.create("heir", tmp_path, system_site_packages=True).state == "ready"
    code = "import plainlib, yaml; print(yaml.__file__)"
    python = envs.python_of("heir", tmp_path)
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    assert Path(done.stdout.strip()).is_relative_to(sysconfig.get_paths()["purelib"]), done.stderr
    (described / "heir.toml").unlink()


def test_list_shows_each_with_its_state(ready, described, capsys):
    from click.testing import CliRunner

    from qeval.cli.main import cli

    describe(described, "other")
    result = CliRunner().invoke(cli, ["env", "--cache-dir", str(ready), "list"])
    rows = {line.split()[0]: line for line in result.output.splitlines()}
    assert " ready " in rows["tiny"] and "MiB" in rows["tiny"] and rows["tiny"].endswith("for a test")
    assert " missing " in rows["other"]


def test_a_build_job_runs_there_with_this_qeval_and_nothing_else_of_here(ready, tmp_path, monkeypatch):
    leak = tmp_path / "leak"
    leak.mkdir()
    (leak / "numpy.py").write_text("raise SystemExit('PYTHONPATH leaked')")
    monkeypatch.setenv("PYTHONPATH", str(leak))
    out = tmp_path / "out"
    out.mkdir()
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    job = Job(
        "build", "k" * 64, "t", ModelRef("m", tmp_path, "sha256:0", "float32"), "copy", {"num_bits": 3},
        out, ready, None, EngineSettings(), python=envs.python_of("tiny", ready),
    )  # fmt: skip
    result = LocalExecutor(tmp_path / "jobs").run(job, 60, lambda *_: None)
    assert (result.status, result.error) == ("ok", None)
    assert (out / "model.json").read_text() == '{"num_bits": 3}'
    if (REPO / ".git").exists():
        assert result.provenance["git_commit"]  # found through the link


def test_the_worker_path_holds_the_package_alone_and_heals(tmp_path):
    folder = envs.worker_path(tmp_path)
    assert [p.name for p in folder.iterdir()] == ["qeval"]
    assert (folder / "qeval").resolve() == REPO / "qeval"
    (folder / "qeval").unlink()
    (folder / "qeval").symlink_to(tmp_path)
    assert envs.worker_path(tmp_path) == folder
    assert (folder / "qeval").resolve() == REPO / "qeval"
    assert len(list((tmp_path / "envs").iterdir())) == 1


def test_changed_requirements_make_it_out_of_date_and_changed_words_do_not(ready, described):
    describe(described, "tiny", about="other words")
    assert envs.python_of("tiny", ready).exists()
    describe(described, "tiny", library=["tinylib==2.0"])
    try:
        with pytest.raises(UsageError, match=r"is out of date: qeval env --cache-dir \S+ create tiny"):
            envs.python_of("tiny", ready)
    finally:
        describe(described, "tiny")


def test_an_interpreter_that_is_gone_is_broken_and_remove_removes(ready, tmp_path):
    marker = (ready / "envs" / "tiny" / envs.MARKER).read_text()
    other = tmp_path / "envs" / "tiny"
    (other / "bin").mkdir(parents=True)
    (other / envs.MARKER).write_text(marker)
    (other / "bin" / "python").symlink_to("/nowhere/python3")
    with pytest.raises(
        UsageError, match="is broken: its interpreter /nowhere/python3 is gone: qeval env"
    ):
        envs.python_of("tiny", tmp_path)
    assert envs.remove("tiny", tmp_path).state == "broken"
    assert not other.exists()
    with pytest.raises(UsageError, match="is not there"):
        envs.remove("tiny", tmp_path)


def test_an_interpreter_that_never_answers(described, tmp_path, monkeypatch):
    describe(described, "slow")
    monkeypatch.setattr(envs, "PROBE_TIMEOUT_S", 0.2)
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexec sleep 100\n")
    program.chmod(0o755)
    with pytest.raises(UsageError, match="it does not run as a Python 3"):
        envs.create("slow", tmp_path, python=program)


@pytest.mark.parametrize(
    ("library", "reason"),
    [
        ("tinylib==3.0", "failed: No matching distribution found for tinylib==3.0; the whole log is "),
        ("tinylib==2.0", "importing tinylib failed: ModuleNotFoundError: No module named 'gone_with"),
    ],
)
def test_a_failed_build_says_why_and_leaves_its_log_alone(
    ready, described, tmp_path, monkeypatch, library, reason
):
    run = envs._Steps.run

    def copied(self, what, argv, hint=""):
        if list(argv[1:3]) == ["-m", "venv"]:  # four seconds of work that is done already
            shutil.copytree(ready / "envs" / "tiny", argv[-1], symlinks=True)
            (argv[-1] / envs.MARKER).unlink()
            return ""
        return run(self, what, argv, hint)

    monkeypatch.setattr(envs._Steps, "run", copied)
    describe(described, "bad", library=[library])
    with pytest.raises(EnvError) as raised:
        envs.create("bad", tmp_path)
    log = tmp_path / "envs" / "bad.log"
    assert reason in str(raised.value) and str(raised.value).endswith(f"the whole log is {log}")
    assert "\n" not in str(raised.value) and log.read_text()
    assert not (tmp_path / "envs" / "bad").exists()
    assert envs.state_of(envs.requirements("bad"), tmp_path).state == "missing"


def test_the_wrong_python_is_said_before_anything_is_built(described, tmp_path):
    describe(described, "old", python=["2.7", "3.5"])
    with pytest.raises(
        UsageError, match=rf"old needs Python 2.7 or 3.5, and \S+ is {HERE}.*--python PATH"
    ):
        envs.create("old", tmp_path)
    describe(described, "old")
    with pytest.raises(UsageError, match="--python /bin/true: it does not run as a Python"):
        envs.create("old", tmp_path, python=Path("/bin/true"))
    poor = tmp_path / "python"  # Debian's without python3-venv
    poor.write_text(f"""#!/bin/sh\necho '["{HERE}.9", "/usr/bin/python3", ["ensurepip"], []]'\n""")
    poor.chmod(0o755)
    with pytest.raises(UsageError, match=rf"no ensurepip\): apt-get install python{HERE}-venv"):
        envs.create("old", tmp_path, python=poor)
    assert not (tmp_path / "envs").exists()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_a_build_that_is_cut_off_is_never_taken_for_whole(links, described, tmp_path, how):
    pid_file = tmp_path / "pid"
    own = tmp_path / "links"
    own.mkdir()
    sdist(own, "slowlib", pid_file)
    describe(described, "slow", library=["slowlib==1.0"])
    code = (
        "import sys; from pathlib import Path; from qeval.cli.main import main\n"
        "from qeval.envs import build as envs\n"
        f"envs.FOLDER = Path({str(described)!r})\n"
        f"sys.argv = ['qeval', 'env', '--cache-dir', {str(tmp_path)!r}, 'create', 'slow']; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PIP_FIND_LINKS": str(own), "PYTHONPATH": str(REPO)},
        stderr=subprocess.DEVNULL,
    )
    pid = _wait_for(lambda: pid_file.exists() and pid_file.read_text())
    needs, folder = envs.requirements("slow"), tmp_path / "envs" / "slow"
    assert envs.state_of(needs, tmp_path).state == "being built"
    with pytest.raises(UsageError, match="being built"):
        envs.remove("slow", tmp_path)
    process.send_signal(how)
    code = process.wait(300)
    _wait_for(lambda: not _alive(pid))  # pip and its child ended, too
    if how == signal.SIGTERM:
        assert code == 130 and not folder.exists()
        return
    _wait_for(lambda: envs.state_of(needs, tmp_path).state == "unfinished")
    with pytest.raises(UsageError, match="is unfinished"):
        envs.python_of("slow", tmp_path)
    assert envs.remove("slow", tmp_path).state == "unfinished"
    assert not folder.exists()


def _alive(pid: str) -> bool:
    """Whether the process runs; a zombie that nobody reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _wait_for(what, seconds=300.0):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found


@pytest.mark.parametrize("on_gpu", [True, False])
def test_shipped_requirements_are_pinned_and_agree_with_their_constraints(monkeypatch, on_gpu):
    monkeypatch.setattr(envs, "FOLDER", SHIPPED)
    monkeypatch.setattr(envs, "_wants_cuda", lambda: on_gpu)
    assert envs.names() == ["auto-awq", "auto-gptq", "vllm"]
    for name in envs.names():
        needs = envs.requirements(name)
        tested = dict(pin.split("==") for pin in needs.constraints)
        assert all(pin.count("==") == 1 for pin in (*needs.library, *needs.constraints))
        for requirement in needs.requirements:
            package, _, version = requirement.replace(">=", "==").partition("==")
            package = package.partition("[")[0]
            assert package in tested, f"{name}: {package} has no tested version"
            assert version == tested[package] or ">=" in requirement
        worker = {"pydantic", "pyyaml", "numpy", "nvidia-ml-py"}
        assert worker <= tested.keys()


def test_qeval_says_unknown_names_with_exit_code_2(monkeypatch):
    monkeypatch.setattr(envs, "FOLDER", SHIPPED)
    done = qeval("env", "create", "auto-gtpq")
    assert done.returncode == 2
    assert done.stderr == "qeval: unknown environment 'auto-gtpq'; did you mean 'auto-gptq'?\n"
