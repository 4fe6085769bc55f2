# Signals everyone: one other process, all, its group, the first, in each of the kernel's ways.
# SIGURG is ignored by default, so that it hurts nobody; whoever gets it could be killed as well.
# contained: passed
# in the open: succeeds
import signal


def attack():
    others = [TARGET["victim"], TARGET["scorer"], 1, os.getppid()]
    others = [pid for pid in others if pid not in (0, os.getpid())]
    urg = int(signal.SIGURG)
    info = urg.to_bytes(4, "little") + bytes(4) + (-1).to_bytes(4, "little", signed=True) + bytes(116)
    attempts = {}
    for pid in others:
        attempts |= {
            f"kill {pid}": lambda pid=pid: os.kill(pid, urg),
            f"killpg {pid}": lambda pid=pid: os.killpg(pid, urg),
            f"tkill {pid}": lambda pid=pid: syscall("tkill", pid, urg),
            f"tgkill {pid}": lambda pid=pid: syscall("tgkill", pid, pid, urg),
            f"queue {pid}": lambda pid=pid: syscall("rt_sigqueueinfo", pid, urg, info),
            f"queue to thread {pid}": lambda pid=pid: syscall("rt_tgsigqueueinfo", pid, pid, urg, info),
        }
    return first({**attempts, "all": lambda: os.kill(-1, urg), "group": lambda: os.kill(0, urg)})
