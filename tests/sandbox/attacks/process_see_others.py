# Looks for other processes without /proc: asks the kernel about each number whether it is there.
# Groups, sessions, priorities, cores and limits of others can be asked for without any right.
# contained: passed
# in the open: succeeds
def attack():
    import resource

    own = {1, os.getpid()}
    asked = {
        "group": os.getpgid,
        "session": os.getsid,
        "priority": lambda pid: os.getpriority(os.PRIO_PROCESS, pid),
        "cores": os.sched_getaffinity,
        "scheduler": os.sched_getscheduler,
        "limits": lambda pid: resource.prlimit(pid, resource.RLIMIT_NOFILE),
        "signal": lambda pid: os.kill(pid, 0),
    }
    for pid in [TARGET["victim"], TARGET["scorer"], *range(2, 3000)]:
        if pid not in own:
            got = first({name: lambda ask=ask, pid=pid: ask(pid) for name, ask in asked.items()})
            if got:
                return f"process {pid}: {got}"
    return None
