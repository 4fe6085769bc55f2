# Fills memory with a mark and ends; and looks for the mark of those before it, in fresh pages, in what
# malloc gives out again, in the stack below, and in new files and pipes.
# A worker that runs one program after another in one process hands all of it on.
# contained: passed
import ctypes
import mmap

MARK = bytes(reversed(b"EREH-SAW-TSAL-EHT"))


def attack():
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    sizes = (1 << 10, 1 << 14, 1 << 17, 1 << 20, 1 << 24)
    blocks = {size: libc.malloc(ctypes.c_size_t(size)) for size in sizes}
    found = [
        f"malloc of {size}" for size, block in blocks.items() if MARK in ctypes.string_at(block, size)
    ]
    pages = mmap.mmap(-1, 1 << 22)
    if MARK in pages[:]:
        found.append("fresh pages")
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with open("hostile-sparse", "w+b") as file:
        file.truncate(1 << 20)
        if file.read().strip(b"\0"):
            found.append("a sparse file")
        file.seek(0)
        for block in blocks.values():
            ctypes.memmove(block, MARK * 50, len(MARK) * 50)
        pages[: len(MARK) * 50] = MARK * 50
        file.write(MARK * 1000)
        os.write(writer, MARK)
    return str(found) if found else None
