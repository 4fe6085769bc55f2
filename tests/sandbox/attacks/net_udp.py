# Sends datagrams: to the host's loopback, to everyone on the link, to an address of the internet.
# A datagram needs no answer to carry a secret away.
# contained: passed
# in the open: succeeds
import socket


def attack():
    def send(address):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            s.connect(address)  # finds the route; only the first address gets a packet
            return s.send(b"x") if address[1] == TARGET["udp"] else s.getsockname()

    addresses = [("127.0.0.1", TARGET["udp"]), ("255.255.255.255", 9), ("192.0.2.1", 53)]
    return first({str(address): lambda address=address: send(address) for address in addresses})
