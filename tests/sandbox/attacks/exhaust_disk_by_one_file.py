# Writes one file without end, ignoring the signal that says it is too large.
# contained: failed: OSError
import signal

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def attack():
    written = 0
    with open("hostile-file", "wb") as file:
        while written < 4 * TARGET["scratch_bytes"]:
            written += file.write(bytes(1 << 20))
    return f"{written} bytes"
