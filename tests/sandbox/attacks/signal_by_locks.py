# Locks files of the host that it may only read (libraries, devices, folders): the kernel keeps a lock with
# the file, so that a program elsewhere sees it, or whoever writes there waits for it.
# contained: passed
# in the open: succeeds
import fcntl
import struct

GET, SET = 36, 37  # F_OFD_GETLK, F_OFD_SETLK
LEASE, NOTIFY = 1024, 1026


def places():
    yield from ("/", "/tmp", "/usr", "/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
    folder = os.path.dirname(os.__file__)
    yield from (folder, os.__file__, os.path.join(folder, "encodings"))
    for name in ("/usr/lib", "/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache"):
        yield name


def described(kind):
    return struct.pack("hhqqi4x", kind, 0, 0, 0, 0)


def seen(fd):
    """Whether somebody who asks for a lock of this file is told of another one."""
    try:
        answer = fcntl.fcntl(fd, GET, described(fcntl.F_WRLCK))
    except OSError:
        return False
    return struct.unpack("hhqqi4x", answer)[0] != fcntl.F_UNLCK


def tried(one, other):
    """What one descriptor did to the file that the other one notices."""
    try:
        fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "flock"
    except OSError:
        pass
    for name, command, kind in (
        ("record lock", fcntl.F_SETLK, fcntl.F_RDLCK),
        ("record lock to write", fcntl.F_SETLK, fcntl.F_WRLCK),
        ("lock of a description", SET, fcntl.F_RDLCK),
        ("lock of a description to write", SET, fcntl.F_WRLCK),
    ):
        try:
            fcntl.fcntl(one, command, described(kind))
        except OSError:
            continue
        if seen(other):
            return name
    for name, command in (("lease", LEASE), ("notice", NOTIFY)):
        try:
            fcntl.fcntl(one, command, 0)
            return name
        except OSError:
            pass


def attack():
    for path in places():
        for flags in (os.O_RDWR, os.O_RDONLY):
            try:
                one, other = os.open(path, flags), os.open(path, flags)
            except OSError:
                continue
            try:
                if got := tried(one, other):
                    return f"{got} on {path}"
            finally:
                os.close(one)
                os.close(other)
