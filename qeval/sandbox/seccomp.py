"""A seccomp filter for the sandboxed program: no new processes, no new namespaces, no memory that
the address space limit does not count.

RLIMIT_NPROC does not bind processes of the real user root (copy_process() in Linux' kernel/fork.c
exempts it, whatever the user namespace), so a fork bomb is stopped here: ``fork``, ``vfork`` and every
``clone`` that does not make a thread fail with EAGAIN. ``clone3`` hides its flags behind a pointer;
it fails with ENOSYS, upon which the C library falls back to ``clone``.

The filter is classic BPF over ``struct seccomp_data {int nr; u32 arch; u64 ip; u64 args[6];}``
(Linux, Documentation/userspace-api/seccomp_filter.rst).
"""

from __future__ import annotations

import errno
import platform
import struct

LOAD, JUMP_EQ, JUMP_GE, JUMP_SET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
OFFSET_NUMBER, OFFSET_ARCH, OFFSET_FLAGS = 0, 4, 16  # flags: low half of args[0], little endian
ALLOW, KILL_PROCESS, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
CLONE_THREAD = 0x00010000
X32_BIT = 0x40000000  # x86-64's second system call table

# machine -> (AUDIT_ARCH, number of clone, {number: errno it fails with})
TABLES: dict[str, tuple[int, int, dict[int, int]]] = {
    "x86_64": (
        0xC000003E,
        56,
        {
            57: errno.EAGAIN,  # fork
            58: errno.EAGAIN,  # vfork
            435: errno.ENOSYS,  # clone3
            272: errno.EPERM,  # unshare
            29: errno.EPERM,  # shmget
            319: errno.EPERM,  # memfd_create
        },
    ),
    "aarch64": (
        0xC00000B7,
        220,
        {
            435: errno.ENOSYS,  # clone3
            97: errno.EPERM,  # unshare
            194: errno.EPERM,  # shmget
            279: errno.EPERM,  # memfd_create
        },
    ),
}


def no_new_processes(machine: str | None = None) -> bytes | None:
    """The filter as an array of ``struct sock_filter``, or None on a machine it does not know."""
    table = TABLES.get(machine or platform.machine())
    if table is None:
        return None
    arch, clone, denied = table
    code = [
        _instruction(LOAD, OFFSET_ARCH),
        _instruction(JUMP_EQ, arch, 1, 0),
        _instruction(RETURN, KILL_PROCESS),
        _instruction(LOAD, OFFSET_NUMBER),
        _instruction(JUMP_GE, X32_BIT, 0, 1),
        _instruction(RETURN, KILL_PROCESS),
    ]
    for number, error in denied.items():
        code += [_instruction(JUMP_EQ, number, 0, 1), _instruction(RETURN, ERRNO | error)]
    code += [
        _instruction(JUMP_EQ, clone, 1, 0),
        _instruction(RETURN, ALLOW),
        _instruction(LOAD, OFFSET_FLAGS),
        _instruction(JUMP_SET, CLONE_THREAD, 0, 1),
        _instruction(RETURN, ALLOW),
        _instruction(RETURN, ERRNO | errno.EAGAIN),
    ]
    return b"".join(code)


def _instruction(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, operand)
