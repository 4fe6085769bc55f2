"""Find llama.cpp's own converter (``convert_hf_to_gguf.py``), in the version that is installed.

No wheel contains it; the source archive of llama-cpp-python does, beside the library's own sources, so
the archive of the installed version is the matching converter. Looked for, in this order:

1. ``QEVAL_LLAMA_CPP``: a llama.cpp checkout, or an unpacked llama-cpp-python source archive;
2. ``<cache_dir>/tools/llama.cpp-<version>``, filled once from the archive: ``QEVAL_LLAMA_CPP_SDIST``
   (its path), ``<cache_dir>/sdist`` (``scripts/setup`` leaves it there), or the package index through
   pip, which downloads it (73 MiB) without compiling anything.
"""

from __future__ import annotations

import ast
import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

from qeval.core.errors import BuildError, MissingExtraError
from qeval.core.files import disk_message
from qeval.envs.pip_log import why

WRAPPER = Path(__file__).with_name("convert_wrapper.py")
"""Runs the converter with a pre-tokenizer that it does not know."""

UNKNOWN_TOKENIZER = (
    "llama.cpp's converter does not know this tokenizer: name the closest it knows with "
    "'pre_tokenizer: gpt-2'"
)
_TEST_TEXT = re.compile(r"^\s*chktxt = (.*)$", re.MULTILINE)
_HASH = re.compile(r'chkhsh == "([0-9a-f]{64})"')

SCRIPT = "convert_hf_to_gguf.py"
_WANTED = (SCRIPT, "conversion", "gguf-py")
_PACKAGE = "llama-cpp-python"
_SCRATCH, _DAY_S = ".unpacking-", 86400.0


def converter_folder(cache_dir: Path) -> Path:
    """The folder that holds ``convert_hf_to_gguf.py`` and what it imports; fetched if need be.

    Raises:
        BuildError: a variable names something else, or there is no network; says what to do.
        MissingExtraError: llama-cpp-python is not installed.
    """
    named = os.environ.get("QEVAL_LLAMA_CPP")
    if named:
        return _checkout(Path(named))
    release = _installed_version()
    folder = cache_dir / "tools" / f"llama.cpp-{release}"
    if not (folder / SCRIPT).is_file():
        _fill(folder, release)
    return folder


def check_tokenizer(folder: Path, cache_dir: Path) -> None:
    """Whether the converter knows a model folder's byte-level BPE tokenizer, by the hash of what that
    makes of a test text, where the converter is here already.

    Raises:
        BuildError: it does not.
    """
    from tokenizers import Tokenizer

    file, named = folder / "tokenizer.json", os.environ.get("QEVAL_LLAMA_CPP")
    tools = (
        _checkout(Path(named)) if named else cache_dir / "tools" / f"llama.cpp-{_installed_version()}"
    )
    sources = [path.read_text(encoding="utf-8") for path in tools.glob("conversion/*.py")]
    asked = next((found[1] for text in sources if (found := _TEST_TEXT.search(text))), None)
    if asked is None or not file.is_file() or (folder / "tokenizer.model").is_file():
        return
    try:
        tokenizer: Any = Tokenizer.from_file(str(file))
    except Exception:  # the library has no class of its own; the job says what is wrong
        return
    if type(tokenizer.model).__name__ != "BPE" or "ByteLevel" not in repr(tokenizer.pre_tokenizer):
        return
    known = {hash for text in sources for hash in _HASH.findall(text)}
    for special in (True, False):
        ids = tokenizer.encode(ast.literal_eval(asked), add_special_tokens=special).ids
        if hashlib.sha256(str(ids).encode()).hexdigest() in known:
            return
    raise BuildError(f"{folder}: {UNKNOWN_TOKENIZER}")


def _checkout(root: Path) -> Path:
    for folder in (root, root / "vendor" / "llama.cpp"):
        if (folder / SCRIPT).is_file() and (folder / "conversion").is_dir():
            return folder
    raise BuildError(
        f"QEVAL_LLAMA_CPP={root}: no {SCRIPT} with its conversion/ folder there; "
        "set it to a llama.cpp checkout, or unset it"
    )


def _installed_version() -> str:
    try:
        return version(_PACKAGE).partition("+")[0]  # 0.3.36+cu124 is built from the source of 0.3.36
    except PackageNotFoundError as err:
        raise MissingExtraError(_PACKAGE, "gguf") from err


def _fill(folder: Path, release: str) -> None:
    """Make ``folder`` whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f"{_SCRATCH}*"):  # by a process that was killed
        if time.time() - left.stat().st_mtime > _DAY_S:
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=_SCRATCH) as scratch:
        unpacked = Path(scratch) / "unpacked"
        kept = folder.parents[1] / "sdist" / f"llama_cpp_python-{release}.tar.gz"
        _unpack(_archive(release, kept, Path(scratch)), unpacked)
        if folder.exists():
            shutil.rmtree(folder)
        unpacked.rename(folder)


def _archive(release: str, kept: Path, scratch: Path) -> Path:
    named = os.environ.get("QEVAL_LLAMA_CPP_SDIST")
    if not named:
        return kept if kept.is_file() else _download(release, scratch)
    if not Path(named).is_file():
        raise BuildError(f"QEVAL_LLAMA_CPP_SDIST={named}: no such file")
    return Path(named)


def _download(release: str, scratch: Path) -> Path:
    """Let pip fetch the archive: it knows this machine's index, proxy and certificates. pip asks the
    archive for its metadata, which compiles nothing."""
    wanted = ["--no-deps", "--no-binary", _PACKAGE, f"{_PACKAGE}=={release}"]
    quiet = ["--no-input", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *quiet, "--dest", str(scratch), *wanted]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    found = next(scratch.glob("*.tar.gz"), None)
    if done.returncode != 0 or found is None:
        raise BuildError(
            "llama.cpp's converter is needed once and pip cannot download it "
            f"({why(done.stdout + done.stderr)}); where there is a network run "
            f"'pip download {' '.join(wanted)}', and here set QEVAL_LLAMA_CPP_SDIST to the .tar.gz"
        )
    return found


def _unpack(archive: Path, target: Path) -> None:
    """Extract the converter's files, and nothing else, into ``target``."""
    path = target
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                inside = _path_in_llama_cpp(member.name)
                content = tar.extractfile(member) if inside and member.isfile() else None
                if inside and content:
                    path = target / inside
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content.read())
    except (tarfile.TarError, EOFError, OSError) as err:
        if isinstance(err, OSError) and err.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BuildError(disk_message(path.parent, err)) from err
        raise BuildError(f"{archive}: cannot be unpacked ({err}); download it again") from err
    if not (target / SCRIPT).is_file():
        raise BuildError(
            f"{archive}: no vendor/llama.cpp/{SCRIPT} inside: not {_PACKAGE}'s source archive"
        )


def _path_in_llama_cpp(name: str) -> PurePosixPath | None:
    """``conversion/llama.py`` for ``llama_cpp_python-0.3.36/vendor/llama.cpp/conversion/llama.py``;
    None for what the converter does not need."""
    parts = PurePosixPath(name).parts
    if parts[1:3] != ("vendor", "llama.cpp") or ".." in parts:
        return None
    inside = PurePosixPath(*parts[3:])
    return inside if inside.parts and inside.parts[0] in _WANTED else None
