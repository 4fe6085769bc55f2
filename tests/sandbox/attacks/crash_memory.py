# Writes where there is no memory, and over the interpreter's own objects.
# A crash must be this program's only, and must not start a crash handler of the host.
# contained: killed
import ctypes


def attack():
    ctypes.memset(id(os.__dict__), 0x41, 64)
    ctypes.memset(id(type), 0x41, 400)
    ctypes.memset(1, 0x41, 1)
