# Changes the interpreter's own library: write, truncate, rename, change mode, owner and times, map.
# The next program, and the judge, would import what was put there.
# contained: passed
import mmap


def attack():
    path = os.__file__
    folder = os.path.dirname(path)
    found = os.stat(path)

    def mapped(flags):
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, flags, mmap.PROT_READ | mmap.PROT_WRITE)

    return first(
        {
            "open to write": lambda: os.open(path, os.O_WRONLY),
            "open to append": lambda: os.open(path, os.O_RDWR | os.O_APPEND),
            "truncate to its size": lambda: os.truncate(path, found.st_size),
            "change mode": lambda: os.chmod(path, found.st_mode),
            "change times": lambda: os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns)),
            "change owner": lambda: os.chown(path, found.st_uid, found.st_gid),
            "rename": lambda: os.rename(path, path),
            "bytecode": lambda: os.open(folder + "/__pycache__/hostile.pyc", os.O_CREAT | os.O_WRONLY),
            "shared map": lambda: mapped(mmap.MAP_SHARED),
            "attribute": lambda: os.setxattr(path, "user.hostile", b"1"),
            "remove a file that is not there": lambda: os.unlink(folder + "/hostile"),
            "lock out writers": lambda: __import__("fcntl").fcntl(os.open(path, os.O_RDONLY), 1024, 0),
        }
    )
