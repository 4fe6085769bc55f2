# Becomes another program: the interpreter, a shell, a script of its own, a file in memory, the loader.
# What is executed starts with new rights if its file has them, and without Python's own restraints.
# contained: passed
import sys


def attack():
    with open("hostile-script", "w") as file:
        file.write("#!/bin/sh\nexit 0\n")
    os.chmod("hostile-script", 0o4755)
    programs = [sys.executable, "/bin/sh", "/bin/true", "/usr/bin/env", "./hostile-script"]
    programs += ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1", "/lib/systemd/systemd"]

    def in_memory():
        fd = syscall("memfd_create", b"hostile", 0)
        os.write(fd, b"#!/bin/sh\n")
        os.execve(fd, ["hostile"], {})

    attempts = {path: lambda path=path: os.execv(path, [path, "-c", "0"]) for path in programs if path}
    return first({**attempts, "memory": in_memory, "empty": lambda: syscall("execve", b"", 0, 0)})
