# Catches every MemoryError and goes on asking, in threads, for as long as its time lasts.
# A limit that is answered by an error is a limit; one that is answered by swapping is not.
# contained: passed, memory, failed: MemoryError, failed: RuntimeError, timeout, killed
import threading
import time

KEEP = []


def hoard():
    until = time.monotonic() + 0.2
    size = 1 << 24
    while time.monotonic() < until:
        try:
            KEEP.append(bytearray(size))
        except MemoryError:
            size = max(size // 2, 1 << 10)
            time.sleep(0.001)


def attack():
    threads = [threading.Thread(target=hoard) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = sum(map(len, KEEP))
    KEEP.clear()
    return f"{total} bytes" if total > TARGET["memory_bytes"] else None
