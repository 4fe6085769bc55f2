# Never ends, at import time, with every signal that can be caught caught and all others blocked.
# A time limit that asks politely is not one.
# contained: timeout
import signal

for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    try:
        signal.signal(number, signal.SIG_IGN)
    except OSError:
        pass
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def attack():
    return None


while True:
    pass
