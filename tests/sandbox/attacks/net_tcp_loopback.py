# Connects to services of the host on the loopback, IPv4 and IPv6: databases, notebooks, agents.
# "No network" often means no route to the internet, and leaves this one.
# contained: passed
# in the open: succeeds
import socket


def attack():
    def connect(host, port):
        with socket.create_connection((host, port), 1) as found:
            return found.getpeername()

    ports = [TARGET["tcp"], 22, 53, 80, 111, 631, 5432, 6379, 8888]
    hosts = ["127.0.0.1", "localhost", "127.0.0.2", "0.0.0.0", "::1"]
    return first({f"{h}:{p}": lambda h=h, p=p: connect(h, p) for p in ports[:1] for h in hosts})
