# Looks for a way out: name lookup, a route to the internet, an interface that has an address.
# Left by a sandbox that shares the host's network.
# contained: passed
import socket


def attack():
    return first(
        {
            "name lookup": lambda: socket.getaddrinfo("localhost.localdomain", 80),
            "own name": lambda: socket.gethostbyname(socket.gethostname()),
            "route": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("192.0.2.1", 9)),
            "route 6": lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).connect(
                ("2001:db8::1", 9)
            ),
            "interfaces": lambda: {n: n for _, n in socket.if_nameindex() if n != "lo"}.popitem(),
        }
    )
