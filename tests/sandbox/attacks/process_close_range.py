# Closes, replaces and marks every descriptor, then does as if nothing were, to make the judge wait.
# A judge that reads without a limit of time waits for ever.
# contained: failed, killed, timeout
def attack():
    null = os.open("/dev/null", os.O_RDWR)
    for fd in range(64):
        if fd != null:
            try:
                os.dup2(null, fd)
            except OSError:
                pass
