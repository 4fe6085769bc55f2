"""Writing whole files: what may be replaced by one, what it looks like afterwards, and what is left."""

import os
import socket
import stat
from pathlib import Path

import pytest

from qeval.core.errors import StoreError
from qeval.core.files import file_sha256, regular_target, write_atomic


def device(path: Path) -> None:
    try:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))  # another /dev/null
    except PermissionError:
        pytest.skip("needs root to make a device")


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


OTHERS = {
    "a device": device,
    "a pipe": os.mkfifo,
    "a socket": unix_socket,
    "a folder": Path.mkdir,
    "a link that leads nowhere": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("linked", [False, True])
def test_only_regular_files_are_replaced(tmp_path, monkeypatch, kind, linked):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    there = path = Path("there")
    OTHERS[kind](there)
    if linked:
        path = Path("link")
        path.symlink_to("there")
    before = there.lstat()
    with pytest.raises(StoreError, match=f"^{path}: is {kind}: name a regular file$"):
        write_atomic(path, "text")
    assert (there.lstat().st_mode, there.lstat().st_ino) == (before.st_mode, before.st_ino)
    assert path.is_symlink() or not linked
    assert {p.name for p in tmp_path.iterdir()} <= {"there", "link"}


def test_standard_output_that_is_a_pipe_is_not_replaced():
    reader, writer = os.pipe()
    with pytest.raises(StoreError, match="is a pipe"):
        write_atomic(Path(f"/proc/self/fd/{writer}"), "text")
    os.close(reader)
    os.close(writer)


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("there", "new"):
        target, link = tmp_path / "folder" / name, tmp_path / name
        if name == "there":
            target.write_text("before")
        link.symlink_to(target)
        write_atomic(link, "after")
        assert link.readlink() == target and target.read_text() == "after"
        assert regular_target(link) == target


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_a_new_file_has_the_permissions_of_the_umask_and_an_old_one_its_own(tmp_path, umask):
    old = os.umask(umask)
    try:
        write_atomic(tmp_path / "new", "x")
        (tmp_path / "kept").touch()
        (tmp_path / "kept").chmod(0o640)
        write_atomic(tmp_path / "kept", "x")
    finally:
        os.umask(old)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "kept")]
    assert modes == [0o666 & ~umask, 0o640]


def test_the_longest_name_can_be_written(tmp_path):
    for character in "xé字😀":
        path = tmp_path / (character * (255 // len(character.encode())))
        write_atomic(path, "text")
        assert path.read_text() == "text"
    with pytest.raises(StoreError, match="name too long"):
        write_atomic(tmp_path / ("x" * 256), "text")


def test_what_cannot_be_encoded_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "\ud800")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_the_hash_of_a_file(tmp_path):
    import hashlib

    data = bytes(range(256)) * 10_000  # more than one read
    (tmp_path / "a").write_bytes(data)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()
