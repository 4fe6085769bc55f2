"""The filters as the kernel would read them: an interpreter for their few instructions."""

import errno
import platform
import re
import struct
from pathlib import Path

import pytest

from qeval.sandbox.inside.seccomp import (
    ALLOW,
    ALLOWED,
    CHECKED,
    ERRNO,
    FCNTL,
    FCNTL_LOCKS,
    KILL_PROCESS,
    LANE_ONLY,
    MACHINES,
    OWN_PID,
    PRETENDED,
    lane_filter,
    number,
    program_filter,
)

THREAD = 0x003D0F00  # flags that glibc's pthread_create gives to clone
FORK = 0x01200011  # and fork: CLONE_CHILD_CLEARTID | CLONE_CHILD_SETTID | SIGCHLD
REFUSED = ERRNO | errno.EPERM
DONE = ERRNO  # an error of number 0: the call returns 0
HEADERS = {"x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")}
DANGEROUS = {  # on x86_64
    "socket": 41, "connect": 42, "fork": 57, "vfork": 58, "execve": 59, "execveat": 322, "ptrace": 101,
    "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308,
    "bpf": 321, "io_uring_setup": 425, "userfaultfd": 323, "perf_event_open": 298, "keyctl": 250,
    "memfd_create": 319, "process_vm_readv": 310, "pidfd_open": 434, "pidfd_getfd": 438,
    "open_by_handle_at": 304, "shmget": 29, "msgget": 68, "mq_open": 240, "setuid": 105, "capset": 126,
    "sendmsg": 46, "recvmsg": 47, "mknod": 133, "kexec_load": 246, "init_module": 175, "reboot": 169,
}  # fmt: skip


def run(code: bytes, machine: str, call: int, *args: int, arch: int | None = None) -> int:
    words = {0: call, 4: MACHINES[machine] if arch is None else arch}
    for i in range(6):
        value = args[i] if i < len(args) else 0
        words[16 + 8 * i], words[20 + 8 * i] = value & 0xFFFFFFFF, value >> 32
    steps = [struct.unpack("=HBBI", code[i : i + 8]) for i in range(0, len(code), 8)]
    at, value = 0, 0
    while True:
        operation, if_true, if_false, operand = steps[at]
        at += 1
        if operation == 0x06:  # return
            return operand
        if operation == 0x20:  # load
            value = words[operand]
            continue
        holds = {
            0x15: value == operand,
            0x25: value > operand,
            0x35: value >= operand,
            0x45: bool(value & operand),
        }[operation]
        at += if_true if holds else if_false


def decide(machine: str, call: int, *args: int, judge: bool = False) -> int:
    """Both filters: the stricter answer counts, as in the kernel."""
    answers = [
        run(code, machine, call, *args)
        for code in (lane_filter(machine), program_filter(may_send=judge, machine=machine))
    ]
    return next((answer for answer in answers if answer != ALLOW), ALLOW)


@pytest.mark.parametrize("machine", MACHINES)
def test_exactly_what_is_listed_is_allowed(machine):
    allowed = {number(pair, machine) for pair in ALLOWED.values()}
    tables = (CHECKED, LANE_ONLY, PRETENDED)
    special = {number(pair, machine) for table in tables for pair in table.values()}
    for call in set(range(600)) - special:
        expected = ERRNO | (errno.ENOSYS if call > 435 else errno.EPERM)
        assert decide(machine, call) == (ALLOW if call in allowed else expected), call


@pytest.mark.parametrize("name", DANGEROUS)
def test_the_dangerous_ones_are_refused_whatever_their_arguments(name):
    for args in ((), (1, 1, 1), (2**64 - 1,) * 6):
        assert decide("x86_64", DANGEROUS[name], *args) != ALLOW


@pytest.mark.parametrize("machine", MACHINES)
def test_threads_start_and_processes_do_not(machine):
    clone, clone3 = (number(pair, machine) for pair in (LANE_ONLY["clone"], CHECKED["clone3"]))
    assert decide(machine, clone, THREAD) == ALLOW
    assert decide(machine, clone, FORK) == REFUSED
    assert decide(machine, clone3) == ERRNO | errno.ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
def test_signals_go_to_oneself_only(machine):
    for name in ("kill", "tgkill"):
        call = number(LANE_ONLY[name], machine)
        assert decide(machine, call, OWN_PID, 9) == ALLOW
        for other in (0, 1, 2**32 - 1, OWN_PID + 1):
            assert decide(machine, call, other, 9) == REFUSED


@pytest.mark.parametrize("machine", MACHINES)
def test_limits_may_be_read_and_not_set(machine):
    call = number(LANE_ONLY["prlimit64"], machine)
    assert decide(machine, call, 0, 7, 0) == ALLOW
    for pointer in (1, 1 << 32, 0x7FFF_0000_0000):
        assert decide(machine, call, 0, 7, pointer) == REFUSED


@pytest.mark.parametrize("machine", MACHINES)
def test_only_harmless_commands_of_the_large_calls(machine):
    fcntl, pair = (number(CHECKED[name], machine) for name in ("fcntl", "socketpair"))
    for command in range(1100):
        refused = DONE if command in FCNTL_LOCKS else ERRNO | errno.EINVAL
        expected = ALLOW if command in FCNTL else refused
        assert decide(machine, fcntl, 3, command) == expected
    assert decide(machine, pair, 1) == ALLOW
    assert all(decide(machine, pair, family) == REFUSED for family in (0, 2, 10, 16, 17, 40))


@pytest.mark.parametrize("machine", MACHINES)
def test_no_lock_is_taken_and_none_is_refused(machine):
    for pair in PRETENDED.values():
        assert decide(machine, number(pair, machine), 3, 2) == DONE
    fcntl = number(CHECKED["fcntl"], machine)
    assert [decide(machine, fcntl, 3, command) for command in (6, 7, 37, 38)] == [DONE] * 4
    assert decide(machine, fcntl, 3, 1024) != DONE  # a lease


@pytest.mark.parametrize("machine", MACHINES)
def test_the_judge_may_hand_over_descriptors_and_nothing_more(machine):
    send = number(LANE_ONLY["sendmsg"], machine)
    assert decide(machine, send, judge=True) == ALLOW
    assert decide(machine, send) == REFUSED
    clone = number(LANE_ONLY["clone"], machine)
    assert decide(machine, clone, FORK, judge=True) == REFUSED


@pytest.mark.parametrize("machine", MACHINES)
def test_other_tables_of_calls_kill(machine):
    code = lane_filter(machine)
    assert run(code, machine, 0, arch=0x40000003) == KILL_PROCESS  # i386
    assert run(code, machine, 0x40000000 | 57) == KILL_PROCESS  # x32


def test_an_unknown_machine_is_an_error():
    with pytest.raises(OSError, match="no table of system calls for riscv64"):
        lane_filter("riscv64")


def test_the_numbers_are_those_of_the_kernels_headers():
    header = HEADERS.get(platform.machine())
    if header is None or not header.exists():
        pytest.skip("no kernel headers for this machine")
    known = {m[1]: int(m[2]) for m in re.finditer(r"#define __NR_(\w+)\s+(\d+)", header.read_text())}
    for name, pair in (ALLOWED | CHECKED | LANE_ONLY | PRETENDED).items():
        if name in known:  # older headers lack the newest
            assert number(pair, platform.machine()) == known[name], name
    for name, call in DANGEROUS.items():
        assert call == known[name]
