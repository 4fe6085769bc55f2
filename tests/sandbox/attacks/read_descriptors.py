# Goes through every descriptor that it was born with: folders, files, pipes, sockets of someone else.
# One that was forgotten at a fork is a way around every wall.
# contained: passed
import socket
import stat


def attack():
    found, sockets = [], 0
    for fd in range(4096):
        try:
            kind = stat.S_IFMT(os.fstat(fd).st_mode)
        except OSError:
            continue
        if kind == stat.S_IFSOCK:
            sockets += 1
            names = [
                socket.socket(fileno=os.dup(fd)).getsockname(),
                socket.socket(fileno=os.dup(fd)).getpeername(),
            ]
            if any(names) or sockets > 1:
                found.append(f"{fd} socket {names}")
        elif kind != stat.S_IFCHR or os.fstat(fd).st_rdev != os.makedev(1, 3):
            found.append(f"{fd} {stat.filemode(kind)}")
    return str(found) if found else None
