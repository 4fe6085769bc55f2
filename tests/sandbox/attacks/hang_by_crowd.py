# Lets many threads wake up at once, again and again, each for an instant: they wait for a core far more
# than they use it, all at the same time.
# A clock that gives back the time waited for a core, added up over the threads, runs backwards.
# contained: timeout, failed
import threading
import time

threading.stack_size(64 << 10)


def attack():
    barrier_s = 0.002
    start = time.monotonic() + 0.05

    def tick():
        n = 0
        while True:
            n += 1
            time.sleep(max(0.0, start + n * barrier_s - time.monotonic()))

    for _ in range(TARGET["threads"] - 2):
        try:
            threading.Thread(target=tick, daemon=True).start()
        except RuntimeError:
            break
    while True:
        time.sleep(1)
