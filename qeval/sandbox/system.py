"""What a lane sees of this machine: an interpreter, its standard library, and the shared libraries
that these load. No other file: no package, of this Python or of another one, so that a program can
import the standard library only.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from qeval.core.errors import SandboxError

DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
SCRATCH = "/tmp"  # where programs write; whatever the machine has there is not to be seen
MOVED = "/python"  # where an interpreter that lives there is shown instead
TOP_LINKS = ("/lib", "/lib64", "/usr/lib64")  # on most systems; paths of libraries go through them
LIBRARY_FOLDERS = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
DATA = ("/usr/share/zoneinfo", "/usr/lib/locale", "/etc/ld.so.cache")
NOT_STANDARD = ("site-packages", "dist-packages", "ensurepip/_bundled")
PATIENCE_S = 300.0  # for an interpreter to come up, on a machine however loaded
# Has the interpreter load all that its standard library may load, and say where it found it.
ASK = """\
import ctypes, json, os, sys
found = ["libgcc_s.so.1"]  # glibc loads it when a thread ends
for folder in sys.path:
    if os.path.isdir(folder):
        found += (f"{folder}/{name}" for name in os.listdir(folder) if name.endswith(".so"))
for library in found:
    try:
        ctypes.CDLL(library, os.RTLD_LAZY)
    except OSError:  # its own libraries are not installed
        pass
with open("/proc/self/maps") as maps:
    mapped = {line.rstrip("\\n").split(None, 5)[5] for line in maps if "/" in line}
json.dump([sys.path, sorted(mapped)], sys.stdout)
"""


@dataclass(frozen=True)
class System:
    """``files``: folders and files to read, each as (path inside, path outside); ``links``: (path
    inside, where it leads); ``hidden``: folders inside that are shown empty; ``moved``: the folder of
    the interpreter (outside, inside) where these differ."""

    python: Path
    files: tuple[tuple[str, str], ...]
    links: tuple[tuple[str, str], ...]
    hidden: tuple[str, ...]
    moved: tuple[str, str] | None

    @property
    def inside_python(self) -> str:
        """The interpreter's path inside."""
        return _inside(str(self.python), self.moved)

    def readable(self, *, walled: bool) -> list[str]:
        """The paths to read, for Landlock. Behind walls the folder of a library has nothing but what is
        shown, and one rule is enough for it."""
        if not walled:
            return [outside for _, outside in self.files]
        libraries = {inside for inside, _ in self.files if ".so" in Path(inside).name}
        others = [inside for inside, _ in self.files if inside not in libraries - set(DATA)]
        return [*others, *sorted({str(Path(path).parent) for path in libraries - set(DATA)})]


@functools.cache
def system() -> System:
    """Raises SandboxError when the interpreter does not start, or cannot say what it loads."""
    python = interpreter()
    prefix = str(python.parent.parent)
    moved = (prefix, MOVED) if prefix.startswith(f"{SCRATCH}/") else None
    paths, mapped = _asked(python)
    standard = [path for path in paths if Path(path).exists()]
    libraries = [path for path in mapped if Path(path).is_file() and path != str(python)]
    real = dict.fromkeys(_real(path) for path in (*standard, *DATA, *libraries) if Path(path).exists())
    shown = [path for path in real if not any(path.startswith(f"{other}/") for other in real)]
    links = {path: str(Path(path).readlink()) for path in TOP_LINKS if Path(path).is_symlink()}
    links |= dict(_links_to(shown, [*LIBRARY_FOLDERS, f"{prefix}/lib", f"{prefix}/{sys.platlibdir}"]))
    links |= {path: _real(path) for path in (*standard, *DATA) if Path(path).is_symlink()}
    hidden = [f"{_real(path)}/{name}" for path in standard for name in NOT_STANDARD]
    return System(
        python,
        tuple((_inside(path, moved), path) for path in shown),
        tuple((_inside(path, moved), _inside(target, moved)) for path, target in links.items()),
        tuple(_inside(path, moved) for path in hidden if Path(path).is_dir()),
        moved,
    )


def interpreter() -> Path:
    """The Python that runs programs: this one without its virtual environment."""
    major, minor = sys.version_info[:2]
    base = Path(sys.base_prefix, "bin", f"python{major}.{minor}")
    return (base if base.exists() else Path(sys.executable)).resolve()


def environment(python: Path, home: str, moved: tuple[str, str] | None = None) -> dict[str, str]:
    """All that a program finds in ``os.environ``."""
    beside = str(python.parent.parent / "lib")  # a shared libpython
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": home,
        "TMPDIR": home,
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",  # the order of a set is the same every time
        "LD_BIND_NOW": "1",  # or every program would look up its functions anew
        "LD_LIBRARY_PATH": ":".join(dict.fromkeys((beside, _inside(beside, moved)))),
    }


def _asked(python: Path) -> tuple[list[str], list[str]]:
    """The interpreter's path of modules, and the files that it has in memory with all its modules."""
    command = [str(python), "-I", "-S", "-B", "-c", ASK]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment(python, "/"),
            timeout=PATIENCE_S,
            check=True,
        )
        paths, mapped = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as err:
        raise SandboxError(f"{python} cannot say which libraries it loads: {err}") from err
    return paths, mapped


def _links_to(files: Iterable[str], folders: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The links to these files in their own folders and in ``folders``: a library is looked up by such
    a name (libz.so.1 for libz.so.1.2.13)."""
    wanted = set(files)
    places = {_real(folder) for folder in folders} | {str(Path(path).parent) for path in wanted}
    for folder in sorted(places):
        if Path(folder).is_dir():
            for entry in sorted(Path(folder).iterdir()):
                if ".so" in entry.name and entry.is_symlink() and (target := _real(entry)) in wanted:
                    yield str(entry), target


def _real(path: str | Path) -> str:
    return str(Path(path).resolve())


def _inside(path: str, moved: tuple[str, str] | None) -> str:
    if moved is not None and path.startswith(f"{moved[0]}/"):
        return moved[1] + path.removeprefix(moved[0])
    return path
