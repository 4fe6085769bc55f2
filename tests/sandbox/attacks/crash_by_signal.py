# Kills itself by every signal there is, in turn, until one works.
# contained: killed
import signal


def attack():
    for number in sorted(
        signal.valid_signals() - {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
    ):
        try:
            signal.signal(number, signal.SIG_DFL)
        except OSError:
            pass
        os.kill(os.getpid(), number)
