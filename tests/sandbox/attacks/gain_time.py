# Sets the clock, its speed, and the name of the machine.
# All programs share one clock, and timeouts are measured by it.
# contained: passed
import ctypes
import socket
import time


def attack():
    unchanged = ctypes.create_string_buffer(208)
    return first(
        {
            "clock": lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()),
            "adjust": lambda: syscall("adjtimex", unchanged),
            "name": lambda: socket.sethostname(socket.gethostname()),
            "boot time": lambda: time.clock_settime(time.CLOCK_MONOTONIC, time.monotonic()),
        }
    )
