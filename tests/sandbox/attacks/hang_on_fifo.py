# Waits where only somebody else could wake it: a pipe without a writer, a lock that it holds itself, its
# own channel.
# contained: timeout, failed: PermissionError
import threading


def attack():
    lock = threading.Lock()
    lock.acquire()
    try:
        os.mkfifo("hostile-fifo")
        open("hostile-fifo")
    except OSError:
        pass
    reader, _ = os.pipe()
    threading.Thread(target=os.read, args=(reader, 1), daemon=True).start()
    lock.acquire()
