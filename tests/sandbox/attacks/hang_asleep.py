# Sleeps without using any time of the processor, in a call that starts again after every signal.
# A limit on CPU time alone never comes.
# contained: timeout
import time


def attack():
    while True:
        try:
            time.sleep(1000)
        except BaseException:
            pass
