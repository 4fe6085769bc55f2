"""Finding llama.cpp's converter: variables, archive, download; nothing half-made is left."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from qeval.core.errors import BuildError
from qeval.llama import converter as llama_tools
from qeval.llama.converter import converter_folder

FILES = {
    "vendor/llama.cpp/convert_hf_to_gguf.py": b"print('convert')\n",
    "vendor/llama.cpp/conversion/llama.py": b"x = 1\n",
    "vendor/llama.cpp/gguf-py/gguf/__init__.py": b"",
    "vendor/llama.cpp/src/llama.cpp": b"int main;",
    "llama_cpp/llama_cpp.py": b"",
    "vendor/llama.cpp/conversion/../../../../evil.py": b"",
}


def make_archive(path: Path, files: dict[str, bytes] = FILES) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"llama_cpp_python-9.9/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.delenv("QEVAL_LLAMA_CPP", raising=False)
    monkeypatch.delenv("QEVAL_LLAMA_CPP_SDIST", raising=False)
    monkeypatch.setattr(llama_tools, "version", lambda _: "9.9+cu124")


def contents(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


WANTED = {"convert_hf_to_gguf.py", "conversion/llama.py", "gguf-py/gguf/__init__.py"}


def test_the_archive_gives_the_converter_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("QEVAL_LLAMA_CPP_SDIST", str(make_archive(tmp_path / "a.tar.gz")))
    folder = converter_folder(tmp_path / "cache")
    assert folder == tmp_path / "cache" / "tools" / "llama.cpp-9.9"
    assert contents(tmp_path / "cache") == {f"tools/llama.cpp-9.9/{name}" for name in WANTED}


def test_it_is_unpacked_once(tmp_path, monkeypatch):
    archive = make_archive(tmp_path / "a.tar.gz")
    monkeypatch.setenv("QEVAL_LLAMA_CPP_SDIST", str(archive))
    first = converter_folder(tmp_path)
    archive.unlink()
    assert converter_folder(tmp_path) == first


def test_a_folder_left_half_made_is_made_again(tmp_path, monkeypatch):
    (tmp_path / "tools" / "llama.cpp-9.9" / "conversion").mkdir(parents=True)
    monkeypatch.setenv("QEVAL_LLAMA_CPP_SDIST", str(make_archive(tmp_path / "a.tar.gz")))
    assert contents(converter_folder(tmp_path)) == WANTED


def test_the_archive_that_setup_keeps_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("no download is needed"))
    (tmp_path / "sdist").mkdir()
    make_archive(tmp_path / "sdist" / "llama_cpp_python-9.9.tar.gz")
    assert contents(converter_folder(tmp_path)) == WANTED


@pytest.mark.parametrize("inside", ["", "vendor/llama.cpp"])
def test_a_checkout_or_an_unpacked_archive_is_taken_as_it_is(tmp_path, monkeypatch, inside):
    root = tmp_path / inside
    (root / "conversion").mkdir(parents=True)
    (root / "convert_hf_to_gguf.py").touch()
    monkeypatch.setenv("QEVAL_LLAMA_CPP", str(tmp_path))
    assert converter_folder(tmp_path / "unused") == root


def test_pip_downloads_the_installed_version(tmp_path, monkeypatch):
    def pip(command, **_):
        assert command[-1] == "llama-cpp-python==9.9" and "--no-deps" in command
        make_archive(Path(command[command.index("--dest") + 1]) / "llama_cpp_python-9.9.tar.gz")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    assert contents(converter_folder(tmp_path)) == WANTED


def test_what_a_killed_process_left_is_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("QEVAL_LLAMA_CPP_SDIST", str(make_archive(tmp_path / "a.tar.gz")))
    tools = tmp_path / "cache" / "tools"
    for name, age in ((".unpacking-old", 1e6), (".unpacking-now", 0)):
        (tools / name / "unpacked").mkdir(parents=True)
        os.utime(tools / name, (time.time() - age,) * 2)
    folder = converter_folder(tmp_path / "cache")
    assert sorted(p.name for p in tools.iterdir()) == [".unpacking-now", folder.name]


@pytest.mark.parametrize(
    ("variable", "says"),
    [
        ("QEVAL_LLAMA_CPP", "no convert_hf_to_gguf.py"),
        ("QEVAL_LLAMA_CPP_SDIST", "no such file"),
        (None, "set QEVAL_LLAMA_CPP_SDIST"),
    ],
)
def test_what_cannot_be_found_is_one_line_with_the_fix(tmp_path, monkeypatch, variable, says):
    offline = subprocess.CompletedProcess([], 1, "", "WARNING: retrying\nERROR: no network\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: offline)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "nothing"))
    with pytest.raises(BuildError, match=says) as caught:
        converter_folder(tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == set()


@pytest.mark.parametrize("kind", ["text", "cut", "other"])
def test_a_bad_archive_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, kind):
    archive = make_archive(
        tmp_path / "a.tar.gz", {"README.md": b"x" * 50_000} if kind == "other" else FILES
    )
    if kind == "text":
        archive.write_text("not an archive")
    if kind == "cut":
        archive.write_bytes(archive.read_bytes()[:100])
    monkeypatch.setenv("QEVAL_LLAMA_CPP_SDIST", str(archive))
    with pytest.raises(BuildError, match=r"a\.tar\.gz"):
        converter_folder(tmp_path / "cache")
    assert contents(tmp_path / "cache") == set()


def test_a_full_disk_is_not_the_archives_fault(tmp_path, monkeypatch):
    monkeypatch.setenv("QEVAL_LLAMA_CPP_SDIST", str(make_archive(tmp_path / "a.tar.gz")))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(BuildError, match="no space left on the device: free some"):
        converter_folder(tmp_path / "cache")
