"""The filter as the kernel would read it: an interpreter for its few instructions."""

import errno
import struct

import pytest

from qeval.sandbox.seccomp import ALLOW, ERRNO, KILL_PROCESS, TABLES, no_new_processes

THREAD = 0x003D0F00  # flags that glibc's pthread_create gives to clone
FORK = 0x01200011  # and fork: CLONE_CHILD_CLEARTID | CLONE_CHILD_SETTID | SIGCHLD


def decide(machine: str, arch: int, number: int, flags: int = 0) -> int:
    code = [struct.unpack("=HBBI", row) for row in chunks(no_new_processes(machine))]
    words, at, value = {0: number, 4: arch, 16: flags}, 0, 0
    while True:
        operation, if_true, if_false, operand = code[at]
        at += 1
        if operation == 0x06:  # return
            return operand
        if operation == 0x20:  # load
            value = words[operand]
            continue
        holds = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[operation]
        at += if_true if holds else if_false


def chunks(data: bytes) -> list[bytes]:
    assert len(data) % 8 == 0
    return [data[i : i + 8] for i in range(0, len(data), 8)]


@pytest.mark.parametrize("machine", TABLES)
def test_threads_start_and_processes_do_not(machine):
    arch, clone, denied = TABLES[machine]
    assert decide(machine, arch, clone, THREAD) == ALLOW
    assert decide(machine, arch, clone, FORK) == ERRNO | errno.EAGAIN
    assert decide(machine, arch, 435, THREAD) == ERRNO | errno.ENOSYS
    for number, error in denied.items():
        assert decide(machine, arch, number) == ERRNO | error


@pytest.mark.parametrize("machine", TABLES)
def test_other_calls_are_allowed_and_other_tables_kill(machine):
    arch, clone, denied = TABLES[machine]
    for number in set(range(450)) - {clone, *denied}:
        assert decide(machine, arch, number) == ALLOW
    assert decide(machine, arch ^ 1, clone, THREAD) == KILL_PROCESS
    assert decide(machine, arch, 0x40000000 | 57) == KILL_PROCESS


def test_an_unknown_machine_has_no_filter():
    assert no_new_processes("riscv64") is None
