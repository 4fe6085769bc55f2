# Makes files in every folder of the system that it can think of, and beside its own.
# Read-only has to hold for each mount, not only for the root.
# contained: passed
# in the open: succeeds
import sys


def attack():
    folders = [
        "/var/tmp",
        "/dev/shm",
        "/",
        "/usr",
        "/usr/lib",
        "/lib",
        "/lib64",
        "/etc",
        "/dev",
        "/run",
        "/home",
    ]
    folders += ["..", "/tmp/..", *sys.path, sys.prefix, os.path.dirname(os.__file__), *TARGET["homes"]]
    for folder in folders:
        path = os.path.join(folder or ".", f"hostile-{os.getpid()}")
        if os.path.realpath(folder or ".") == os.path.realpath("/tmp"):
            continue
        for make in (lambda path: open(path, "x").close(), os.mkdir, os.mkfifo):
            try:
                make(path)
            except OSError:
                continue
            os.rmdir(path) if os.path.isdir(path) else os.unlink(path)
            return f"could write to {folder}"
    return None
