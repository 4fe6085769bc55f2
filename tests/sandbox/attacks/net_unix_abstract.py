# Connects to abstract Unix sockets, which have no path and no permissions.
# They belong to the network namespace; a changed root does not hide them.
# contained: passed
# in the open: succeeds
import socket


def attack():
    def connect(kind, name):
        with socket.socket(socket.AF_UNIX, kind) as s:
            s.connect(name)
            return name

    return first(
        {
            "stream": lambda: connect(socket.SOCK_STREAM, TARGET["abstract_stream"]),
            "datagram": lambda: connect(socket.SOCK_DGRAM, TARGET["abstract_datagram"]),
        }
    )
