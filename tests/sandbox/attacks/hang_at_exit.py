# Leaves by raising SystemExit, and then does not leave: exit hooks, threads that are waited for,
# finalizers.
# contained: failed, timeout
import atexit
import sys
import threading
import time

atexit.register(time.sleep, 1000)
threading.Thread(target=time.sleep, args=(1000,)).start()


class Last:
    def __del__(self):
        time.sleep(1000)


LAST = Last()


def attack():
    sys.exit(0)
