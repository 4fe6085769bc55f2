"""The system calls that a program may make: a list of what is allowed, as a seccomp filter.

What an interpreter, its standard library and threads need is allowed; everything else fails with EPERM
(or ENOSYS, if it is newer than ``clone3``, for the C library to fall back). So there is no new process,
no other program, no socket but a pair of its own, no signal to anyone else, and most of the kernel
(mounts, namespaces, keys, io_uring, bpf, ptrace, ...) is out of reach.

Locks of files are granted without being taken. The kernel keeps them with the file, and the files of
the libraries are the host's: with a real lock, one program could signal to another, or hold up the
host. Nobody else is there to lock out of a program's own files.

The filter is classic BPF over ``struct seccomp_data {int nr; u32 arch; u64 ip; u64 args[6];}`` (Linux,
Documentation/userspace-api/seccomp_filter.rst); the numbers are those of its asm/unistd.h.
"""

from __future__ import annotations

import errno
import os
import struct

LOAD, JUMP_EQ, JUMP_GT, JUMP_GE, JUMP_SET, RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06
OFFSET_NUMBER, OFFSET_ARCH, OFFSET_ARGS = 0, 4, 16
ALLOW, KILL_PROCESS, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
CLONE_THREAD = 0x00010000
X32_BIT = 0x40000000  # x86-64's second system call table
AF_UNIX = 1
OWN_PID = 0x70ED0001  # stands for the number of the process until it is known; no pid is that large

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_...

# name: number on (x86_64, aarch64)
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "preadv": (295, 69),
    "pwritev": (296, 70),
    "close": (3, 57),
    "lseek": (8, 62),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "pipe": (22, None),
    "pipe2": (293, 59),
    "close_range": (436, 436),
    "open": (2, None),
    "openat": (257, 56),
    "creat": (85, None),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "statfs": (137, 43),
    "fstatfs": (138, 44),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getdents": (78, None),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    "chdir": (80, 49),
    "fchdir": (81, 50),
    "umask": (95, 166),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "link": (86, None),
    "linkat": (265, 37),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "truncate": (76, 45),
    "ftruncate": (77, 46),
    "fallocate": (285, 47),
    "fsync": (74, 82),
    "fdatasync": (75, 83),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "sendfile": (40, 71),
    "copy_file_range": (326, 285),
    "mmap": (9, 222),
    "munmap": (11, 215),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "brk": (12, 214),
    "msync": (26, 227),
    "futex": (202, 98),
    "set_robust_list": (273, 99),
    "set_tid_address": (218, 96),
    "rseq": (334, 293),
    "membarrier": (324, 283),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "sched_getparam": (143, 121),
    "sched_getscheduler": (145, 120),
    "sched_get_priority_max": (146, 125),
    "sched_get_priority_min": (147, 126),
    "getpriority": (140, 141),
    "getcpu": (309, 168),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "rt_sigpending": (127, 136),
    "rt_sigsuspend": (130, 133),
    "rt_sigtimedwait": (128, 137),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "getitimer": (36, 102),
    "setitimer": (38, 103),
    "alarm": (37, None),
    "pause": (34, None),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "wait4": (61, 260),
    "waitid": (247, 95),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "getppid": (110, 173),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getresuid": (118, 148),
    "getresgid": (120, 150),
    "getgroups": (115, 158),
    "getpgrp": (111, None),
    "getpgid": (121, 155),
    "getsid": (124, 156),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "times": (100, 153),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "uname": (63, 160),
    "getrandom": (318, 278),
    "getrlimit": (97, 163),
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    "epoll_create": (213, None),
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    "eventfd": (284, None),
    "eventfd2": (290, 19),
    "sendto": (44, 206),
    "recvfrom": (45, 207),
    "shutdown": (48, 210),
    "getsockname": (51, 204),
    "getpeername": (52, 205),
    "getsockopt": (55, 209),
}
PRETENDED: dict[str, tuple[int | None, int | None]] = {  # returns 0, and nothing is done
    "flock": (73, 32),
    "fadvise64": (221, 223),  # advice, by which a library's pages could be thrown out of memory
}
CHECKED: dict[str, tuple[int | None, int | None]] = {  # allowed for some arguments
    "clone3": (435, 435),
    "fcntl": (72, 25),
    "ioctl": (16, 29),
    "socketpair": (53, 199),
}
LANE_ONLY: dict[
    str, tuple[int | None, int | None]
] = {  # for the zygote; a program may do less, or nothing
    "clone": (56, 220),
    "kill": (62, 129),
    "tgkill": (234, 131),
    "prctl": (157, 167),
    "prlimit64": (302, 261),
    "setrlimit": (160, 164),
    "capset": (126, 91),
    "sendmsg": (46, 211),
    "recvmsg": (47, 212),
    "mount": (165, 40),
    "umount2": (166, 39),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}
PIVOT_ROOT = (155, 41)
FCNTL = (0, 1, 2, 3, 4, 5, 36, 1030)  # DUPFD .. SETFL, GETLK, OFD_GETLK, DUPFD_CLOEXEC
FCNTL_LOCKS = (6, 7, 37, 38)  # SETLK, SETLKW, the same of open file descriptions: pretended
IOCTL = (
    0x5401,
    0x5413,
    0x541B,
    0x5421,
    0x5450,
    0x5451,
)  # TCGETS TIOCGWINSZ FIONREAD FIONBIO FIO(N)CLEX
PRCTL = (15, 16)  # the name of a thread


def number(pair: tuple[int | None, int | None], machine: str | None = None) -> int | None:
    """The number of a system call on a machine; None where it does not have it.

    Raises:
        OSError: a machine that the tables do not know.
    """
    machine = machine or os.uname().machine
    if machine not in MACHINES:
        raise OSError(errno.ENOSYS, f"no table of system calls for {machine}")
    return pair[list(MACHINES).index(machine)]


def lane_filter(machine: str | None = None) -> bytes:
    """What no process of a lane needs is refused: an array of ``struct sock_filter``."""
    machine = machine or os.uname().machine
    plain = {number(pair, machine) for table in (ALLOWED, LANE_ONLY) for pair in table.values()}
    code = [
        _step(LOAD, OFFSET_ARCH),
        _step(JUMP_EQ, MACHINES[machine], 1, 0),
        _step(RETURN, KILL_PROCESS),
        _step(LOAD, OFFSET_NUMBER),
        _step(JUMP_GE, X32_BIT, 0, 1),
        _step(RETURN, KILL_PROCESS),
    ]
    pretend = _refuse(0)  # an error of number 0 is none
    code += _by_number({name: [pretend] for name in PRETENDED}, PRETENDED, machine)
    for first, last in _ranges(sorted(n for n in plain if n is not None)):
        code += [_step(JUMP_GE, first, 0, 2), _step(JUMP_GT, last, 1, 0), _step(RETURN, ALLOW)]
    checks = {
        "clone3": [_refuse(errno.ENOSYS)],  # its flags lie in memory; the C library falls back to clone
        "fcntl": [*_each(1, FCNTL_LOCKS, pretend), *_one_of(1, FCNTL, errno.EINVAL)],
        "ioctl": _one_of(1, IOCTL, errno.ENOTTY),
        "socketpair": _one_of(0, (AF_UNIX,), errno.EPERM),
    }
    code += _by_number(checks, CHECKED, machine)
    newest = number(CHECKED["clone3"], machine) or 0
    code += [_step(JUMP_GT, newest, 0, 1), _refuse(errno.ENOSYS), _refuse(errno.EPERM)]
    return b"".join(code)


def program_filter(*, may_send: bool = False, machine: str | None = None) -> bytes:
    """What only the zygote needs is refused, too. OWN_PID stands for the number of the process;
    ``may_send`` allows ``sendmsg`` (the judge hands descriptors to the zygote)."""
    machine = machine or os.uname().machine
    own = _one_of(0, (OWN_PID,), errno.EPERM)
    thread = [
        _argument(0),
        _step(JUMP_SET, CLONE_THREAD, 0, 1),
        _step(RETURN, ALLOW),
        _refuse(errno.EPERM),
    ]
    asking = [  # no new limits: a null pointer, both halves of it
        _argument(2),
        _step(JUMP_EQ, 0, 0, 3),
        _argument(2, high=True),
        _step(JUMP_EQ, 0, 0, 1),
        _step(RETURN, ALLOW),
        _refuse(errno.EPERM),
    ]
    checks = {name: [_refuse(errno.EPERM)] for name in LANE_ONLY}
    checks |= {"kill": own, "tgkill": own, "clone": thread, "prlimit64": asking}
    checks["prctl"] = _one_of(0, PRCTL, errno.EINVAL)
    if may_send:
        del checks["sendmsg"]
    steps = [_step(LOAD, OFFSET_NUMBER), *_by_number(checks, LANE_ONLY, machine), _step(RETURN, ALLOW)]
    return b"".join(steps)


def _by_number(
    checks: dict[str, list[bytes]], table: dict[str, tuple[int | None, int | None]], machine: str
) -> list[bytes]:
    """For each check, its block if the call has its number: every block ends in a decision."""
    code = []
    for name, block in checks.items():
        of_machine = number(table[name], machine)
        if of_machine is not None:
            code += [_step(JUMP_EQ, of_machine, 0, len(block)), *block]
    return code


def _one_of(argument: int, values: tuple[int, ...], error: int) -> list[bytes]:
    return [*_each(argument, values, _step(RETURN, ALLOW)), _refuse(error)]


def _each(argument: int, values: tuple[int, ...], decision: bytes) -> list[bytes]:
    """The decision for these values of an argument."""
    steps = ([_step(JUMP_EQ, value, 0, 1), decision] for value in values)
    return [_argument(argument), *(step for pair in steps for step in pair)]


def _argument(index: int, *, high: bool = False) -> bytes:
    return _step(LOAD, OFFSET_ARGS + 8 * index + 4 * high)  # both machines are little endian


def _refuse(error: int) -> bytes:
    return _step(RETURN, ERRNO | error)


def _ranges(numbers: list[int]) -> list[tuple[int, int]]:
    """Runs of neighbours: fewer instructions for the kernel to check for every process."""
    runs: list[tuple[int, int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], n)
        else:
            runs.append((n, n))
    return runs


def _step(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, operand)
