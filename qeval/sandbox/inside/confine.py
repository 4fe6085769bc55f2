"""The walls around one process, which it puts up itself and can never take down again."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from .seccomp import OWN_PID, lane_filter, program_filter
from .syscalls import (
    LANDLOCK_ADD_RULE,
    LANDLOCK_CREATE_RULESET,
    LANDLOCK_RESTRICT_SELF,
    PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_CLEAR_ALL,
    PR_CAPBSET_DROP,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_SECCOMP,
    SECCOMP_MODE_FILTER,
    capabilities,
    make,
    prctl,
    ready,
    syscall,
)

# Landlock (Documentation/userspace-api/landlock.rst): rights of the file system by ABI version.
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_REG, MAKE_SYM = 1 << 4, 1 << 5, 1 << 7, 1 << 8, 1 << 12
REFER, TRUNCATE = 1 << 13, 1 << 14
RIGHTS_OF_ABI = {1: (1 << 13) - 1, 2: REFER, 3: TRUNCATE, 5: 1 << 15}  # 5: ioctl of devices
NET_ABI, ALL_TCP = 4, 3  # bind and connect
SCOPE_ABI, ALL_SCOPES = 6, 3  # abstract Unix sockets and signals of others
QUIET_ABI, NO_LOG = 7, 1  # hostile programs would fill the audit log
VERSION_FLAG, PATH_BENEATH = 1, 1
READ = READ_FILE | READ_DIR
USE_DEVICE = READ_FILE | WRITE_FILE | TRUNCATE
OWN = READ | WRITE_FILE | TRUNCATE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SYM | REFER


class Files(NamedTuple):
    """What a confined process may reach: folders to read, devices to use, one folder of its own."""

    read: Sequence[str]
    devices: Sequence[str]
    own: str


def no_new_privileges() -> None:
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities(keep: int = 0) -> None:
    """Keep only the capabilities of the mask ``keep``, also for every later program."""
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError as err:
            if err.errno not in (errno.EINVAL, errno.EPERM):  # no such capability; no right to drop
                raise
    make(capabilities(keep))


def limit(limits: Mapping[str, int]) -> None:
    """Set resource limits (names of the resource module)."""
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))


def limit_cpu(seconds: int) -> None:
    """The second of CPU time at which the kernel kills; nothing can catch that."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    if hard != resource.RLIM_INFINITY:
        seconds = min(seconds, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))


def landlock_version() -> int:
    """The ABI version of Landlock. Raises OSError where the kernel has none."""
    return syscall(LANDLOCK_CREATE_RULESET, None, 0, VERSION_FLAG)


def landlock_rules(files: Files) -> int:
    """A descriptor of the rule set for :func:`landlock`. Raises OSError where there is no Landlock."""
    version = landlock_version()
    handled = 0
    for since, rights in RIGHTS_OF_ABI.items():
        handled |= rights if version >= since else 0
    network = ALL_TCP if version >= NET_ABI else 0
    scoped = ALL_SCOPES if version >= SCOPE_ABI else 0
    size = 8 if version < NET_ABI else 16 if version < SCOPE_ABI else 24
    attributes = (ctypes.c_uint64 * 3)(handled, network, scoped)
    rules = syscall(LANDLOCK_CREATE_RULESET, ctypes.byref(attributes), size, 0)
    wanted = [(path, READ) for path in files.read]
    wanted += [(path, USE_DEVICE) for path in files.devices]
    for path, rights in [*wanted, (files.own, OWN)]:
        _allow(rules, path, rights & handled)
    return rules


def _allow(rules: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:  # not every machine has a /lib64
        return
    if not os.path.isdir(path):
        rights &= EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE
    # struct landlock_path_beneath_attr is packed: 8 bytes of rights, 4 of descriptor
    attributes = rights.to_bytes(8, "little") + fd.to_bytes(4, "little")
    syscall(LANDLOCK_ADD_RULE, rules, PATH_BENEATH, attributes, 0)
    os.close(fd)


def landlock(rules: int) -> Callable[[], int]:
    """The call that binds its thread and the children of that by a rule set, ready; it needs
    no_new_privileges."""
    flags = NO_LOG if landlock_version() >= QUIET_ABI else 0
    return ready("syscall", LANDLOCK_RESTRICT_SELF, rules, flags)


class LaneFilter:
    """The seccomp filter that all processes of a lane share; needs no_new_privileges."""

    def __init__(self) -> None:
        self._bytes, self._call = _filter(lane_filter())

    def install(self) -> None:
        make(self._call)


class ProgramFilter:
    """The filter that comes on top of it for one process, ready before the fork."""

    def __init__(self, *, may_send: bool = False) -> None:
        code = program_filter(may_send=may_send)
        self._bytes, self._call = _filter(code)
        own = struct.pack("=I", OWN_PID)
        self._pids = [at for at in range(4, len(code), 8) if code[at : at + 4] == own]

    def install(self) -> None:
        """Allow this process only what ``seccomp.py`` lists, for good."""
        pid = os.getpid()
        for at in self._pids:
            struct.pack_into("=I", self._bytes, at, pid)
        make(self._call)


def _filter(code: bytes) -> tuple[ctypes.Array[ctypes.c_char], Callable[[], int]]:
    """A filter in memory, which must stay there, and the call that installs it: ``struct sock_fprog
    {unsigned short len; struct sock_filter *filter;}``."""
    filter = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(code) // 8, ctypes.addressof(filter))
    program = ctypes.create_string_buffer(header)
    return filter, ready("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0)
