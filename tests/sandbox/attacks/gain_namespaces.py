# Makes namespaces of its own, in which it would be root: by unshare, clone, clone3 and setns.
# In a new user namespace it has every capability, and much of the kernel opens to it.
# contained: passed
# in the open: as root
import ctypes

FLAGS = {
    "mount": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000,
    "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000,
}  # fmt: skip


def attack():
    thread = 0x100 | 0x400 | 0x800 | 0x10000 | 0x200

    def child(pid):
        if pid == 0:
            os._exit(0)
        return os.waitpid(pid, 0)

    def clone3(flag):
        return child(syscall("clone3", (ctypes.c_uint64 * 11)(flag, 0, 0, 0, 17), 88))

    return first(
        {
            **{f"unshare {n}": lambda f=f: syscall("unshare", f) for n, f in FLAGS.items()},
            **{
                f"clone {n}": lambda f=f: child(syscall("clone", f | 17, 0, 0, 0, 0))
                for n, f in FLAGS.items()
            },
            **{f"clone3 {n}": lambda f=f: clone3(f) for n, f in FLAGS.items()},
            **{
                f"thread {n}": lambda f=f: syscall("clone", f | thread, 0, 0, 0, 0)
                for n, f in FLAGS.items()
            },
            **{f"setns {fd}": lambda fd=fd: syscall("setns", fd, 0) for fd in range(16)},
            "unshare time": lambda: syscall("unshare", 0x80),
            "clone3 time": lambda: clone3(0x80),
            "unshare files": lambda: syscall("unshare", 0x200),
        }
    )
