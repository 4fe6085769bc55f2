# Searches all of its own memory for the text of the tests, page by page, as a debugger would.
# A program that was forked after the tests were read has a copy of them somewhere.
# contained: passed
# in the open: succeeds
import ctypes
import gc
import sys

WANTED = b"uid!ktefd&r!udru;!gnts"  # each byte flipped, not to find this file and its copies
PAGE = 4096


def attack():
    needle = ctypes.create_string_buffer(len(WANTED))  # the only place where it is in clear
    for i, byte in enumerate(WANTED):
        needle[i] = byte ^ 1
    own = ctypes.addressof(needle)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.memmem.restype = ctypes.c_void_p
    reader, writer = os.pipe()
    seen = set()

    def readable(address):  # without /proc: the kernel says EFAULT, where a load would crash
        done = libc.write(writer, ctypes.c_void_p(address), ctypes.c_size_t(1)) == 1
        return bool(done and os.read(reader, 1))

    def found(page):
        at = libc.memmem(
            ctypes.c_void_p(page), ctypes.c_size_t(PAGE), needle, ctypes.c_size_t(len(WANTED))
        )
        return at if at is not None and at != own else None

    for thing in [
        *map(id, gc.get_objects()),
        *map(id, sys.modules.values()),
        *map(id, range(300)),
        id(""),
    ]:
        for step in (PAGE, -PAGE):
            page = (thing & ~(PAGE - 1)) + min(step, 0)
            while page not in seen and readable(page):
                if at := found(page):
                    return f"{len(seen)} pages, at {at:x}: {ctypes.string_at(at, 40)!r}"
                seen.add(page)
                page += step
    return None if len(seen) > 500 else f"only {len(seen)} pages to search"
