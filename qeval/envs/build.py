"""Separate environments for libraries that need other versions than qeval does, each with its
interpreter.

``<cache_dir>/envs/<name>/`` is a virtual environment made from ``_data/envs/<name>.toml``, which names
the tested Pythons, the packages and their versions. A build job that wants one
(``Method.environment``) runs ``python_of(name)`` with this qeval's own code on its path, and nothing
else of the environment that started it.

An environment is complete if it has ``qeval-env.json``, which is written last: a virtual environment
knows its own path, so that it cannot be built beside and renamed. pip inherits the lock, so that a
build whose qeval was killed holds it until its pip has ended, too, which guard.py sees to.

uv does what pip would where it is on PATH (uv.py); where it fails, pip does it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from qeval.core import guard
from qeval.core.errors import EnvError, StoreError, UsageError, did_you_mean, one_line
from qeval.core.files import disk_message, real_path, write_atomic
from qeval.core.settings import default_cache_dir
from qeval.envs.pip_log import why
from qeval.envs.uv import Uv
from qeval.envs.uv import found as uv_for

FOLDER = Path(__file__).parents[1] / "_data" / "envs"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
MARKER = "qeval-env.json"
PROBE_TIMEOUT_S = 60.0  # for an interpreter to say its version

State = Literal["ready", "missing", "out of date", "unfinished", "being built", "broken"]
Say = Callable[[str], None]

_PROBE = """
import importlib.util, json, platform, sys, sysconfig
gone = [m for m in ("venv", "ensurepip") if importlib.util.find_spec(m) is None]
paths = sysconfig.get_paths()
packages = sorted({paths["purelib"], paths["platlib"]}) if sys.prefix != sys.base_prefix else []
print(json.dumps([platform.python_version(), sys.executable, gone, packages]))
"""
_TRY = """
import importlib, json, sys
from importlib.metadata import PackageNotFoundError, version
importlib.import_module(sys.argv[1])
found = {}
for name in sys.argv[2:]:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print("\\n" + json.dumps(found))
"""
_SHOWN = ("torch", "transformers", "tokenizers", "numpy")  # versions that a list of environments has


@dataclass(frozen=True)
class Requirements:
    """What an environment is made of; ``_data/envs/NAME.toml``."""

    name: str
    about: str  # for people: what it is for
    python: tuple[str, ...]  # "3.11", ...: those it was tested with
    torch: str | None  # version; None: it needs none
    module: str  # what a test of the environment imports
    library: tuple[str, ...]  # installed without their dependencies
    requirements: tuple[str, ...]
    constraints: tuple[str, ...]  # the tested versions of everything else
    variables: dict[str, str]  # for pip

    @property
    def sha256(self) -> str:
        """Of all that decides what is installed."""
        told = {k: v for k, v in asdict(self).items() if k not in ("about", "python")}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class EnvState:
    """One environment as it is on this machine; plain data."""

    name: str
    about: str
    state: State
    path: Path
    python: str | None  # its version
    n_bytes: int
    versions: dict[str, str]  # the library's, torch's, ...: as they were installed
    works: bool | None  # its library was imported in it; None: not tried
    error: str  # why it does not work, or what to do


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def requirements(name: str, library: str | None = None) -> Requirements:
    """What an environment is made of on this machine: where it has no NVIDIA GPU, as its table ``cpu``
    says.

    Args:
        library: another version of its library than the tested one, in pip's words (``vllm==0.27.1``).
            pip then chooses torch and all else.

    Raises:
        UsageError: no environment has the name, or it has no such library.
    """
    path = FOLDER / f"{name}.toml"
    if name not in names():
        raise UsageError(f"unknown environment {name!r}{did_you_mean(name, names())}")
    data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    on_cpu = data.pop("cpu", {})
    if on_cpu and not _wants_cuda():
        data |= on_cpu
    lists = ("python", "library", "requirements", "constraints")
    if library is not None:
        data |= _of_another_version(name, data, library)
    return Requirements(
        **{
            "name": name,
            "torch": None,
            "variables": {},
            **data,
            **{key: tuple(data.get(key, ())) for key in lists},
        }
    )


def _of_another_version(name: str, data: dict[str, Any], library: str) -> dict[str, Any]:
    """The keys that another version of the library changes. Raises UsageError for another package."""
    wanted, found = _project(library), False
    changed: dict[str, Any] = {"torch": None, "constraints": []}
    for key in ("library", "requirements"):
        kept = [r for r in data.get(key, ()) if _project(r) != wanted]
        found = found or len(kept) < len(data.get(key, ()))
        changed[key] = kept
    if not found:
        asked = ", ".join([*data.get("library", ()), *data.get("requirements", ())])
        raise UsageError(f"--library {library}: {name} has no such package: it has {asked}")
    changed["requirements"].append(library)
    return changed


def _project(requirement: str) -> str:
    """``vllm`` of ``vllm[audio]==0.26.0``."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    return re.sub(r"[-_.]+", "-", found[0]).lower() if found else ""


def python_of(name: str, cache_dir: Path) -> Path:
    """The interpreter of a whole environment that is up to date.

    Raises:
        UsageError: there is none; with the command that makes it.
    """
    found = state_of(requirements(name), cache_dir)
    if found.state != "ready":
        raise UsageError(f"the environment {name} is {found.state}: {found.error}")
    return _python(found.path)


def worker_path(cache_dir: Path) -> Path:
    """A folder that holds this qeval alone (a link), for the PYTHONPATH of another interpreter.

    Raises:
        StoreError: the cache cannot be written.
    """
    package = Path(__file__).resolve().parents[1]
    tag = hashlib.sha256(str(package).encode()).hexdigest()[:12]  # one cache serves many checkouts
    folder = cache_dir / "envs" / f".path-{tag}"
    link = folder / "qeval"
    try:
        if not (link.is_symlink() and link.readlink() == package):
            folder.mkdir(parents=True, exist_ok=True)
            beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".path-")) / "qeval"
            beside.symlink_to(package)
            beside.replace(link)
            beside.parent.rmdir()
    except OSError as err:
        raise StoreError(disk_message(folder, err)) from err
    return folder


def states(cache_dir: Path) -> list[EnvState]:
    """Every known environment, by the files alone."""
    found = [state_of(requirements(name), cache_dir) for name in names()]
    return [replace(state, n_bytes=_size(state.path)) for state in found]


def examine(cache_dir: Path) -> list[EnvState]:
    """The same, and each one that is ready tried by importing its library (seconds each)."""
    return [_tried(found) if found.state == "ready" else found for found in states(cache_dir)]


def state_of(needs: Requirements, cache_dir: Path) -> EnvState:
    """The state of an environment, by its marker; its size is not counted."""
    path = cache_dir / "envs" / needs.name
    command = _command(needs.name, cache_dir)
    found = EnvState(needs.name, needs.about, "missing", path, None, 0, {}, None, command)
    marker = _marker(path)
    if marker is None:
        if _locked(path):
            return replace(found, state="being built", error="wait for the command that makes it")
        return replace(found, state="unfinished") if path.is_dir() else found
    found = replace(found, python=marker["python"], versions=marker["versions"])
    if not _python(path).exists():
        gone = f"its interpreter {_python(path).resolve()} is gone: {command}"
        return replace(found, state="broken", error=gone)
    if library := marker.get("library"):  # its user's choice: out of date only where he has another
        needs = requirements(needs.name, library)
    if marker["sha256"] != needs.sha256:
        return replace(found, state="out of date")
    return replace(found, state="ready", error="")


def create(
    name: str,
    cache_dir: Path,
    *,
    python: Path | None = None,
    system_site_packages: bool = False,
    recreate: bool = False,
    library: str | None = None,
    pip: bool = False,
    verbose: bool = False,
    say: Say = lambda _: None,
) -> EnvState:
    """Make an environment, or make it again where it is out of date; nothing where it is ready.

    Args:
        library: see ``requirements``; an environment of another version is made again.
        pip: do not use uv.
        verbose: say each command, and where its output goes.

    Raises:
        UsageError: the interpreter is not one that it was tested with, or cannot make environments; the
            environment has no such ``library``.
        EnvError: pip failed, or the library does not import; the log stays, the rest goes.
        StoreError: the cache cannot be written.
    """
    needs = requirements(name, library)
    path = cache_dir / "envs" / name
    base = _probed(python or Path(sys.executable), needs, cache_dir)
    tool = None if pip else _uv(base, system_site_packages, say)
    with _lock(path, say) as lock:
        found = state_of(needs, cache_dir)
        same = library is None or library == (_marker(path) or {}).get("library")
        if found.state == "ready" and same and not recreate:
            return found
        _cleared(path)
        try:
            with path.with_suffix(".log").open("w+", encoding="utf-8") as log:
                steps = _Steps(log, lock, needs, say, verbose)
                if tool is None or not _built_by_uv(tool, path, needs, base, steps, library):
                    pip_tool = _Pip(base, system_site_packages)
                    _build(path, needs, base, system_site_packages, steps, library, pip_tool)
        except OSError as err:
            _cleared(path)
            raise StoreError(disk_message(path.parent, err)) from err
        except BaseException:  # Ctrl-C, too: what is there is not an environment
            _cleared(path)
            raise
    return state_of(needs, cache_dir)


def remove(name: str, cache_dir: Path) -> EnvState:
    """Remove an environment, whole or not; its state before.

    Raises:
        UsageError: it is not there, or is being built.
    """
    found = state_of(requirements(name), cache_dir)
    if found.state == "missing":
        raise UsageError(f"the environment {name} is not there (`qeval env list`)")
    if found.state == "being built":
        raise UsageError(f"the environment {name} is being built: stop the command that makes it")
    with _lock(found.path, lambda _: None):
        _cleared(found.path)
        found.path.with_suffix(".log").unlink(missing_ok=True)
    return found


@dataclass(frozen=True)
class _Base:
    """The interpreter that an environment is made from."""

    path: Path
    version: str
    packages: tuple[str, ...]  # where a virtual environment has its packages; () where it is none


@dataclass
class _Steps:
    """Runs the commands of a build, into one log."""

    log: IO[str]
    lock: IO[str]
    needs: Requirements
    say: Say
    verbose: bool = False

    def run(
        self,
        what: str,
        argv: Sequence[str | Path],
        hint: str = "",
        variables: Mapping[str, str] | None = None,
    ) -> str:
        """The command's output. Raises EnvError, with the hint, where it ends with an error."""
        self.say(what)
        command = f"$ {' '.join(map(str, argv))}"
        if self.verbose:
            self.say(f"{command} > {self.log.name}")
        self.log.write(f"\n{command}\n")
        self.log.flush()
        start = self.log.tell()
        process = guard.start(
            [str(a) for a in argv],
            stdout=self.log,
            stderr=subprocess.STDOUT,
            pass_fds=(self.lock.fileno(),),
            env={
                **_clean_environment(),
                "PIP_NO_INPUT": "1",
                **self.needs.variables,
                **(variables or {}),
            },
        )
        try:
            code = process.wait()
        finally:
            guard.stop(process)
        self.log.seek(start)
        output = self.log.read()
        if code:
            raise EnvError(_failure(f"{self.needs.name}: {what}", output, hint, self.log.name))
        return output


class _Tool(Protocol):
    """What makes a virtual environment and installs into it."""

    name: str

    def venv(self, path: Path, steps: _Steps) -> None: ...

    def install(
        self,
        what: str,
        path: Path,
        asked: Sequence[str | Path],
        steps: _Steps,
        *,
        index: str | None = None,
        hint: str = "",
    ) -> None:
        """``index``: of torch's CPU builds, which is not waited for long."""


class _Pip:
    name = "pip"

    def __init__(self, base: _Base, system: bool) -> None:
        self._base, self._system = base, system

    def venv(self, path: Path, steps: _Steps) -> None:
        flags = ["--system-site-packages"] if self._system else []
        what = f"making it with Python {self._base.version}"
        steps.run(what, [self._base.path, "-m", "venv", *flags, path])

    def install(
        self,
        what: str,
        path: Path,
        asked: Sequence[str | Path],
        steps: _Steps,
        *,
        index: str | None = None,
        hint: str = "",
    ) -> None:
        quick = ["--timeout", "15", "--retries", "1", "--index-url", index] if index else []
        # Python compiles the modules that are imported; pip would compile all, for half a minute.
        flags = ["--disable-pip-version-check", "install", "--no-compile", *quick]
        steps.run(what, [_python(path), "-m", "pip", *flags, *asked], hint)


class _ByUv:
    def __init__(self, uv: Uv, base: _Base) -> None:
        self.name = f"uv {uv.version}"
        self._uv, self._base = uv, base

    def venv(self, path: Path, steps: _Steps) -> None:
        what = f"making it with Python {self._base.version} ({self.name})"
        steps.run(what, self._uv.venv(self._base.path, path), variables=self._uv.variables)

    def install(
        self,
        what: str,
        path: Path,
        asked: Sequence[str | Path],
        steps: _Steps,
        *,
        index: str | None = None,
        hint: str = "",
    ) -> None:
        quick = {"UV_HTTP_TIMEOUT": "15", "UV_HTTP_RETRIES": "1"} if index else {}
        argv = [*self._uv.install(_python(path), index), *asked]
        if (
            index and self._uv.has_folders
        ):  # uv ends where an index is out of reach; pip looks into these
            try:
                steps.run(f"{what} of find-links", [*argv, "--no-index"], hint, self._uv.variables)
            except EnvError:
                pass  # its log has why
            else:
                return
        steps.run(what, argv, hint, {**self._uv.variables, **quick})


def _uv(base: _Base, system: bool, say: Say) -> _ByUv | None:
    """uv, where it is on PATH and can do what pip would; where it cannot, that is said."""
    found, why_not = uv_for(base.path, _clean_environment())
    if found is not None and system:  # it would install again what the interpreter has
        found, why_not = None, "it takes no account of --system-site-packages"
    if why_not:
        say(f"with pip, not uv: {why_not}")
    return _ByUv(found, base) if found else None


def _built_by_uv(
    tool: _ByUv, path: Path, needs: Requirements, base: _Base, steps: _Steps, library: str | None
) -> bool:
    """Whether uv could make it; if not, nothing is left of it but the log."""
    try:
        _build(path, needs, base, False, steps, library, tool)
    except EnvError as err:
        _cleared(path)
        steps.say(f"again with pip, since with {tool.name}: {one_line(str(err))}")
        return False
    return True


def _build(
    path: Path,
    needs: Requirements,
    base: _Base,
    system: bool,
    steps: _Steps,
    library: str | None,
    tool: _Tool,
) -> None:
    tool.venv(path, steps)
    if system and base.packages:
        _inherit(path, base)
    pins = list(needs.constraints) if not system else []
    if needs.torch:
        if not system:
            _install_torch(tool, path, needs.torch, steps)
        pins.append(f"torch=={_installed_torch(path, needs, steps)}")
    constraints = path / "constraints.txt"
    constraints.write_text("\n".join(pins) + "\n", encoding="utf-8")
    if needs.requirements:
        what = f"installing {len(needs.requirements)} packages and what they need"
        tool.install(what, path, ["-c", constraints, *needs.requirements], steps)
    if needs.library:
        what = f"installing {', '.join(needs.library)}"
        tool.install(what, path, ["--no-deps", "-c", constraints, *needs.library], steps)
    versions = _import(path, needs, steps)
    marker = {
        "sha256": needs.sha256,
        "python": base.version,
        "system_site_packages": system,
        "library": library,
        "installer": tool.name,
        "versions": versions,
        "made": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    write_atomic(path / MARKER, json.dumps(marker, indent=1))


def _inherit(path: Path, base: _Base) -> None:
    """Let the environment see the packages of the virtual environment that it is made from, behind its
    own: ``venv`` gives it only those of the interpreter below."""
    (site,) = path.glob("lib/python*/site-packages")
    (site / "inherited.pth").write_text("\n".join(base.packages) + "\n", encoding="utf-8")


def _install_torch(tool: _Tool, path: Path, version: str, steps: _Steps) -> None:
    """torch as scripts/setup takes it: a CPU build where there is no GPU, never gigabytes of CUDA."""
    if _wants_cuda():
        tool.install(f"installing torch {version}", path, [f"torch=={version}"], steps)
        return
    # The local version +cpu exists only on PyTorch's own index and in --find-links folders.
    wanted = f"torch=={version}+cpu"
    hint = f"where {TORCH_CPU_INDEX} is out of reach, set PIP_FIND_LINKS to a folder with its wheel"
    asked = ["--no-deps", wanted]
    tool.install(f"installing {wanted}", path, asked, steps, index=TORCH_CPU_INDEX, hint=hint)


def _installed_torch(path: Path, needs: Requirements, steps: _Steps) -> str:
    code = "from importlib.metadata import version; print(version('torch'))"
    try:
        return steps.run("looking for torch", [_python(path), "-c", code]).split()[-1]
    except EnvError as err:
        raise UsageError(
            f"{needs.name}: the interpreter has no torch of its own: leave --system-site-packages out, "
            "or name another with --python"
        ) from err


def _import(path: Path, needs: Requirements, steps: _Steps) -> dict[str, str]:
    """Import the library in the environment; the versions it runs with."""
    shown = [*(r.split("==")[0] for r in needs.library), *_SHOWN]
    output = steps.run(f"importing {needs.module}", [_python(path), "-c", _TRY, needs.module, *shown])
    found: dict[str, str] = json.loads(output.strip().splitlines()[-1])
    return found


def _tried(found: EnvState) -> EnvState:
    needs = requirements(found.name)
    shown = [*(r.split("==")[0] for r in needs.library), *_SHOWN]
    argv = [str(_python(found.path)), "-c", _TRY, needs.module, *shown]
    result = subprocess.run(argv, capture_output=True, text=True, env=_clean_environment())
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        return replace(found, works=False, error=f"import {needs.module}: {reason}")
    return replace(found, works=True, versions=json.loads(result.stdout.strip().splitlines()[-1]))


def _probed(python: Path, needs: Requirements, cache_dir: Path) -> _Base:
    """The interpreter, asked for its version and for what it can do, before anything is built."""
    try:
        asked = subprocess.run(
            [str(python), "-c", _PROBE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=_clean_environment(),
            timeout=PROBE_TIMEOUT_S,
        )
        version, path, gone, packages = json.loads(asked.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as err:
        raise UsageError(f"--python {python}: it does not run as a Python 3") from err
    minor = ".".join(version.split(".")[:2])
    if minor not in needs.python:
        tested = " or ".join(needs.python)
        raise UsageError(
            f"{needs.name} needs Python {tested}, and {python} is {version}: "
            f"{_command(needs.name, cache_dir)} --python PATH of one"
        )
    if gone:
        raise UsageError(
            f"{python} cannot make virtual environments (it has no {gone[0]}): "
            f"apt-get install python{minor}-venv, or name another interpreter with --python"
        )
    return _Base(Path(path), version, tuple(packages))


def _wants_cuda() -> bool:
    """Whether torch's own choice is right (a GPU, or not Linux), as scripts/setup decides."""
    if sys.platform != "linux":
        return True
    if not (program := shutil.which("nvidia-smi")):
        return False
    listed = subprocess.run([program, "-L"], capture_output=True, text=True)
    return listed.stdout.startswith("GPU")


def _failure(what: str, output: str, hint: str, log: str) -> str:
    return "; ".join(filter(None, [f"{what} failed: {why(output)}", hint, f"the whole log is {log}"]))


def _clean_environment() -> dict[str, str]:
    """pip's own settings hold; nothing of this interpreter's path does."""
    hidden = (
        "PYTHONPATH",
        "PYTHONHOME",
        "PIP_TARGET",
        "PIP_PREFIX",
        "PIP_USER",
        "PIP_REQUIRE_VIRTUALENV",
        "UV_SYSTEM_PYTHON",
        "UV_TARGET",
        "UV_PREFIX",
    )
    return {k: v for k, v in os.environ.items() if k not in hidden}


def _command(name: str, cache_dir: Path) -> str:
    where = (
        "" if real_path(cache_dir) == real_path(default_cache_dir()) else f" --cache-dir {cache_dir}"
    )
    return f"qeval env{where} create {name}"


def _python(path: Path) -> Path:
    return path / "bin" / "python"


def _marker(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, object] = json.loads((path / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def _lock_file(path: Path) -> Path:
    return path.parent / f".lock-{path.name}"


@contextmanager
def _lock(path: Path, say: Say) -> Iterator[IO[str]]:
    """Hold the environment's lock; two that want one environment wait for each other."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _lock_file(path).open("w")  # stays: unlinking would race
    except OSError as err:
        raise StoreError(disk_message(path.parent, err)) from err
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another qeval that makes {path.name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _locked(path: Path) -> bool:
    try:
        with _lock_file(path).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # it was never made, or may only be read
    return False


def _cleared(path: Path) -> None:
    """Remove the environment, its marker first: what a kill leaves half removed is not whole."""
    (path / MARKER).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _size(path: Path) -> int:
    return sum(entry.lstat().st_size for entry in path.rglob("*") if not entry.is_dir())
