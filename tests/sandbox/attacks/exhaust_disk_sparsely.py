# Makes files that seem larger than any disk, by holes, and maps them.
# Whoever copies or reads such a file gets all of it.
# contained: passed
# in the open: succeeds
import signal

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def attack():
    with open("hostile-sparse", "wb", buffering=0) as file:
        got = first(
            {
                "truncate": lambda: file.truncate(1 << 40),
                "seek": lambda: file.seek(1 << 40) and file.write(b"x"),
                "pwrite": lambda: os.pwrite(file.fileno(), b"x", 1 << 40),
                "allocate": lambda: os.posix_fallocate(file.fileno(), 0, 1 << 40),
            }
        )
        size = os.fstat(file.fileno()).st_size
        file.truncate(0)
    return f"{got}: {size} bytes" if size > TARGET["scratch_bytes"] else None
