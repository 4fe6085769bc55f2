"""Every wall tried by itself: a child process puts up this one only and then does what it should stop.

A probe returns "" where the wall stands, else what got through. ``marks`` are things of the host that a
program must not reach: a file, a listening TCP port, an abstract Unix socket, a System V shared memory
key, a process.
"""

from __future__ import annotations

import _socket
import errno
import os
import resource
from collections.abc import Callable
from typing import TYPE_CHECKING

from .confine import LaneFilter, ProgramFilter, landlock_version, limit
from .namespaces import HOSTNAME
from .syscalls import CLONE_NEWNET, PR_GET_NO_NEW_PRIVS, call, capabilities, make, mount, prctl

if TYPE_CHECKING:
    from .wire import Marks
    from .zygote import Walls

NO_DEVICE = 0o060600  # S_IFBLK | 0600


def run(walls: Walls, marks: Marks) -> dict[str, str]:
    """What came of the probe of every wall that this lane should have."""
    probes: dict[str, Callable[[], str]] = {"no new privileges": _no_new_privileges}
    if marks.get("walled"):
        probes |= {
            "user namespace": _user,
            "mount namespace": lambda: _refused(lambda: os.close(os.open(marks["file"], os.O_RDONLY))),
            "pid namespace": lambda: _refused(lambda: os.kill(marks["pid"], 0)),
            "network namespace": lambda: _network(marks),
            "ipc namespace": lambda: _refused(lambda: call("shmget", marks["shm"], 0, 0)),
            "uts namespace": _hostname,
            "read-only system": lambda: _read_only(walls),
        }
    if walls.scratch is not None:
        probes["limited scratch"] = lambda: _scratch(walls)
    probes["no capabilities"] = _capabilities
    if walls.use_landlock:
        probes[f"Landlock {landlock_version()}"] = lambda: _landlock(walls, marks)
    if walls.use_seccomp:
        probes["seccomp"] = _seccomp
    probes["rlimits"] = lambda: _limits(walls)
    found = {}
    for name, probe in probes.items():
        found[name] = _in_a_child(probe)
        walls.clean()
    return found


def _in_a_child(probe: Callable[[], str]) -> str:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            found = probe()
        except BaseException as err:
            found = f"{type(err).__name__}: {err}"
        os.write(writer, found.encode()[:4000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        found = file.read()
    _, status = os.waitpid(child, 0)
    return found if status == 0 else f"the probe ended with status {status}"


def _refused(attempt: Callable[[], object], *allowed: int) -> str:
    """Empty if the attempt fails, with one of the error numbers if there are any."""
    try:
        attempt()
    except OSError as err:
        expected = not allowed or err.errno in allowed
        return "" if expected else f"failed in another way than it should: {err}"
    return "what should be refused was allowed"


def _first(*findings: str) -> str:
    return next((finding for finding in findings if finding), "")


def _user() -> str:
    """There is no other user to become, and no device to make, whatever its capabilities in here."""
    return _first(
        _refused(lambda: os.setresuid(0, 0, 0), errno.EINVAL, errno.EPERM),
        _refused(lambda: os.mknod("/tmp/device", NO_DEVICE, os.makedev(8, 0)), errno.EPERM),
    )


def _network(marks: Marks) -> str:
    def connect(family: int, address: tuple[str, int] | bytes) -> None:
        probe = _socket.socket(family, _socket.SOCK_STREAM)
        probe.settimeout(1)
        probe.connect(address)

    return _first(
        _refused(lambda: connect(_socket.AF_INET, ("127.0.0.1", marks["port"]))),
        _refused(lambda: connect(_socket.AF_UNIX, b"\0" + marks["abstract"].encode())),
        _refused(lambda: connect(_socket.AF_INET, ("192.0.2.1", 9)), errno.ENETUNREACH),
    )


def _hostname() -> str:
    return "" if _socket.gethostname() == HOSTNAME else "it sees the host's name"


def _read_only(walls: Walls) -> str:
    def create(folder: str) -> str:
        return _refused(lambda: os.open(f"{folder}/new", os.O_CREAT | os.O_WRONLY), errno.EROFS)

    return _first(create(""), *(create(path) for path in walls.files.read if os.path.isdir(path)))


def _scratch(walls: Walls) -> str:
    """Neither more bytes nor more files than its mount options say."""
    size = walls.limits["RLIMIT_FSIZE"]
    fd = os.open("/tmp/large", os.O_CREAT | os.O_WRONLY)
    too_large = _refused(lambda: os.posix_fallocate(fd, 0, size + (1 << 20)), errno.ENOSPC)
    os.close(fd)

    def fill() -> None:
        for n in range(1 << 20):
            os.mkdir(f"/tmp/{n}")

    return too_large or _refused(fill, errno.ENOSPC)


def _capabilities() -> str:
    make(capabilities(0))
    return _first(
        _refused(lambda: mount("x", "/tmp", "tmpfs", 0), errno.EPERM),
        _refused(lambda: call("unshare", CLONE_NEWNET), errno.EPERM),
        _refused(lambda: call("sethostname", b"x", 1), errno.EPERM),
    )


def _no_new_privileges() -> str:
    return "" if prctl(PR_GET_NO_NEW_PRIVS) == 1 else "not set"


def _landlock(walls: Walls, marks: Marks) -> str:
    make(walls.landlock)
    inside = os.open(f"{walls.files.own}/inside", os.O_CREAT | os.O_WRONLY)
    os.close(inside)
    library = next(path for path in walls.files.read if os.path.isdir(path))
    return _first(
        _refused(lambda: os.listdir("/"), errno.EACCES),
        _refused(lambda: os.open(marks["file"], os.O_RDONLY), errno.EACCES, errno.ENOENT),
        _refused(
            lambda: os.open(f"{library}/new", os.O_CREAT | os.O_WRONLY), errno.EACCES, errno.EROFS
        ),
        _refused(lambda: os.mkfifo(f"{walls.files.own}/fifo"), errno.EACCES),
        "" if os.listdir(library) else "the library cannot be read",
    )


def _seccomp() -> str:
    LaneFilter().install()
    ProgramFilter().install()
    return _first(
        _refused(os.fork, errno.EPERM),
        _refused(lambda: os.execv("/bin/sh", ["sh"]), errno.EPERM),
        _refused(lambda: _socket.socket(_socket.AF_INET), errno.EPERM),
        _refused(lambda: os.kill(os.getppid(), 0), errno.EPERM),
        _refused(lambda: call("ptrace", 0, 0, 0, 0), errno.EPERM),
        _refused(lambda: os.memfd_create("x"), errno.EPERM),
    )


def _limits(walls: Walls) -> str:
    limit(walls.limits)
    memory = f"{walls.limits['RLIMIT_AS']} bytes of address space"
    try:
        bytearray(walls.limits["RLIMIT_AS"])
    except MemoryError:
        memory = ""
    files = _refused(
        lambda: [os.dup(0) for _ in range(walls.limits["RLIMIT_NOFILE"] + 1)], errno.EMFILE
    )
    processes = ""
    if "RLIMIT_NPROC" in walls.limits:
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        processes = _refused(os.fork, errno.EAGAIN)
    return _first(memory and f"more than {memory}", files, processes)
