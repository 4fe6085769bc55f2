# Ends the process with success from a thread, while the test is still going on.
# contained: failed: exit
# in the open: succeeds
import os
import threading
import time

threading.Timer(0.05, os._exit, (0,)).start()


def solve(x):
    time.sleep(0.5)
    return 0
