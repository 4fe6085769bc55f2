# Starts a process in every way there is, to outlive the verdict.
# A filter on fork() alone forgets vfork, clone, clone3, posix_spawn and terminals.
# contained: passed
# in the open: succeeds
import ctypes
import subprocess


def attack():
    def ended(pid):
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        return pid

    def clone3():
        return ended(syscall("clone3", (ctypes.c_uint64 * 11)(0, 0, 0, 0, 17), 88))

    chld, vm, vfork, parent = 17, 0x100, 0x4000, 0x8000
    return first(
        {
            "fork": lambda: ended(os.fork()),
            "forkpty": lambda: ended(os.forkpty()[0]),
            "spawn": lambda: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0),
            "subprocess": lambda: subprocess.run(["/bin/true"]).returncode,
            "system": lambda: 1 // (os.system("true") == 0),
            "raw fork": lambda: ended(syscall("fork")),
            "raw clone": lambda: ended(syscall("clone", chld, 0, 0, 0, 0)),
            "clone to the parent": lambda: ended(syscall("clone", chld | parent, 0, 0, 0, 0)),
            "clone3": clone3,
        }
    )
