# Goes on after the verdict: threads that never end, handlers for every signal, an alarm, exit hooks,
# a finalizer, all writing files for the next program to stumble over.
# A pool that uses its processes again, or waits for them to end nicely, keeps it alive.
# contained: passed
import atexit
import signal
import threading
import time

for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, lambda *_: None)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU})


def go_on():
    while True:
        with open(f"hostile-alive-{time.monotonic_ns()}", "w") as file:
            file.write("x")
        time.sleep(0.01)


class Last:
    def __del__(self):
        go_on()


LAST = Last()
LAST.itself = LAST


def attack():
    atexit.register(go_on)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    for _ in range(4):
        threading.Thread(target=go_on).start()
