# Stops itself by signal, as a shell stops a job: it is not running, and has not ended.
# Whoever waits for its end, or for its time to be used up, waits for ever.
# contained: timeout
import signal


def attack():
    os.kill(os.getpid(), signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGTSTP)
    return None
