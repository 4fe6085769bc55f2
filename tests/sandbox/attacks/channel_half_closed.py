# Closes half of the channel, then all of it, and stays alive behind it.
# Its end of file is no end of its life.
# contained: killed, failed, timeout
import socket
import time


def solve(x):
    s = socket.socket(fileno=3)
    s.shutdown(socket.SHUT_WR)
    s.detach()
    os.closerange(0, 64)
    time.sleep(1000)
