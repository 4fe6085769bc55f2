# Becomes somebody else: root, the users of the host, another group; takes back capabilities.
# In a user namespace of its own a process starts with all of them.
# contained: passed
import ctypes


def attack():
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    found = (ctypes.c_uint32 * 6)()
    if libc.capget(header, found) == 0 and any(found):
        return f"has capabilities {list(found)}"
    if 0 in (*os.getresuid(), *os.getresgid(), *os.getgroups()):
        return f"is {os.getresuid()} {os.getresgid()} {os.getgroups()}"
    every = (ctypes.c_uint32 * 6)(1 << 21, 1 << 21, 0, 0, 0, 0)
    some = [0, 1, 1000, 65533]
    return first(
        {
            **{f"user {i}": lambda i=i: os.setresuid(i, i, i) for i in some},
            **{f"group {i}": lambda i=i: os.setresgid(i, i, i) for i in some},
            **{f"uid {i}": lambda i=i: os.setuid(i) for i in some},
            "groups": lambda: os.setgroups([0]),
            "capabilities": lambda: syscall("capset", header, every),
            "new privileges": lambda: syscall("prctl", 38, 0, 0, 0, 0),
            "ambient": lambda: syscall("prctl", 47, 2, 21, 0, 0),
            "secure bits": lambda: syscall("prctl", 28, 0, 0, 0, 0),
            "keep": lambda: syscall("prctl", 8, 1, 0, 0, 0),
        }
    )
