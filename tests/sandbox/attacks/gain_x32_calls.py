# Makes system calls of x86-64's second table, whose numbers have bit 30 set: socket, mount, ptrace.
# A filter that compares plain numbers does not know them.
# contained: killed, passed
def attack():
    if platform.machine() != "x86_64":
        return None
    calls = {"fork": 57, "socket": 41, "ptrace": 521, "execve": 520, "mount": 165, "vfork": 58}
    arguments = {"socket": (1, 1, 0), "ptrace": (0, 0, 0, 0)}
    for name, plain in calls.items():
        try:
            got = syscall(plain | 0x40000000, *arguments.get(name, (0, 0, 0)))
        except OSError:
            continue
        if got == 0 and "fork" in name:
            os._exit(0)
        return f"{name}: {got}"
    return None
