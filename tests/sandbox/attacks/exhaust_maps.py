# Takes memory that is not its heap: maps private, shared, without reserve, of huge pages, of a sparse
# file, the data segment, and moved maps.
# contained: passed
# in the open: succeeds
import ctypes
import mmap


def attack():
    size = 64 << 20
    shared, private, no_reserve = mmap.MAP_SHARED, mmap.MAP_PRIVATE, 0x4000
    kinds = [private, shared, private | no_reserve, shared | no_reserve, private | 0x40000]
    taken, keep = 0, []
    for kind in kinds:
        for _ in range(2 * TARGET["memory_bytes"] // size):
            try:
                keep.append(mmap.mmap(-1, size, kind | mmap.MAP_ANONYMOUS))
            except (OSError, ValueError, MemoryError):
                break
            taken += size
    libc = ctypes.CDLL(None)
    libc.sbrk.restype = ctypes.c_void_p
    for _ in range(16):
        if libc.sbrk(ctypes.c_long(size)) != ctypes.c_void_p(-1).value:
            taken += size
    return f"{taken} bytes" if taken > TARGET["memory_bytes"] else None
