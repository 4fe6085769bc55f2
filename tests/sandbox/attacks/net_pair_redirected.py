# Takes an end of a socket pair, which asyncio needs and every sandbox allows, and points it elsewhere:
# a datagram end may send to any address, connect again, and be bound to a name.
# socket() is never called.
# contained: passed
# in the open: succeeds
import socket


def attack():
    def pair(kind):
        return socket.socketpair(socket.AF_UNIX, kind)[0]

    def sent(kind, name):
        return pair(kind).sendto(b"x", name)

    def connected(kind, name):
        pair(kind).connect(name)
        return name

    names = [
        TARGET[k] for k in ("unix_datagram", "abstract_datagram", "unix_stream", "abstract_stream")
    ]
    kinds = [socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET, socket.SOCK_STREAM]
    return first(
        {
            **{f"send {n!r} {k}": lambda n=n, k=k: sent(k, n) for n in names for k in kinds},
            **{f"connect {n!r} {k}": lambda n=n, k=k: connected(k, n) for n in names for k in kinds},
            "bind": lambda: pair(socket.SOCK_STREAM).bind("\0hostile-name"),
            "bind a path": lambda: pair(socket.SOCK_DGRAM).bind("hostile-socket"),
        }
    )
