"""Linux system calls that Python has no function for, by ctypes."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

# The same number on every architecture (since Linux 5.1, new calls are).
MOUNT_SETATTR = 442
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = (
    0x00020000,
    0x02000000,
    0x04000000,
    0x08000000,
)
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000

MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MNT_DETACH = 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
AT_FDCWD, AT_RECURSIVE = -100, 0x8000

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 4, 22, 24
PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 38, 39, 47, 4
SECCOMP_MODE_FILTER = 2
CAP_SYS_ADMIN = 21


def call(name: str, *arguments: object) -> int:
    """A function of the C library; raises OSError with its name where it returns -1."""
    result: int = getattr(_libc, name)(*map(_word, arguments))
    if result == -1:
        raise _failure(name)
    return result


def syscall(number: int, *arguments: object) -> int:
    """A system call by number; raises OSError."""
    result: int = _libc.syscall(ctypes.c_long(number), *map(_word, arguments))
    if result == -1:
        raise _failure(f"system call {number}")
    return result


def ready(name: str, *arguments: object) -> Callable[[], int]:
    """A call of a function of the C library, put together before a fork; for :func:`make`. A forked
    process touches few pages to make it, and each of them is one for the kernel to copy."""
    return functools.partial(getattr(_libc, name), *map(_word, arguments))


def make(call: Callable[[], int]) -> None:
    """Make a call that is ready; raises OSError."""
    if call() == -1:
        raise _failure(str(call))


def _word(argument: object) -> object:
    """Integers as 64 bits: a plain int would be passed as 32 of them."""
    return ctypes.c_long(argument) if isinstance(argument, int) else argument


def _failure(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


def prctl(option: int, *arguments: object) -> int:
    return call("prctl", option, *arguments, *(0,) * (4 - len(arguments)))


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    call("mount", source.encode(), target.encode(), kind.encode(), flags, data.encode())


class _MountAttributes(ctypes.Structure):
    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def set_mount_attributes(path: str, attributes: int, *, recursive: bool) -> None:
    """Linux 5.12 or newer."""
    wanted = _MountAttributes(attributes, 0, 0, 0)
    size = ctypes.sizeof(wanted)
    flags = AT_RECURSIVE if recursive else 0
    syscall(MOUNT_SETATTR, AT_FDCWD, path.encode(), flags, ctypes.byref(wanted), size)


def capabilities(mask: int) -> Callable[[], int]:
    """Sets the effective and permitted capabilities to ``mask`` (bits below 32), inheritable ones to
    none."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    return ready("capset", header, (ctypes.c_uint32 * 6)(mask, mask, 0, 0, 0, 0))
