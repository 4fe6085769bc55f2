# Connects to Unix sockets of the host by their paths: agents, the display, buses, Docker.
# They need no network, only a path; Docker's is worth root.
# contained: passed
# in the open: succeeds
import socket


def attack():
    def connect(kind, path):
        with socket.socket(socket.AF_UNIX, kind) as s:
            s.connect(path)
            return path

    paths = [
        TARGET["unix_stream"],
        "/run/docker.sock",
        "/run/dbus/system_bus_socket",
        "/tmp/.X11-unix/X0",
    ]
    return first(
        {
            "datagram": lambda: connect(socket.SOCK_DGRAM, TARGET["unix_datagram"]),
            **{path: lambda path=path: connect(socket.SOCK_STREAM, path) for path in paths[:1]},
            **{f"sees {path}": lambda path=path: os.stat(path).st_ino for path in paths},
        }
    )
