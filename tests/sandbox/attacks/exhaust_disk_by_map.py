# Extends a file to the limit and writes to a map of it beyond what the file system has room for.
# The kernel says so with a signal, since a store has no other answer.
# contained: killed, failed: OSError, passed
import mmap


def attack():
    written = 0
    for i in range(4):
        with open(f"hostile-{i}", "w+b") as file:
            file.truncate(TARGET["scratch_bytes"])
            pages = mmap.mmap(file.fileno(), TARGET["scratch_bytes"])
            for at in range(0, len(pages), 4096):
                pages[at] = 1
                written += 4096
    return f"{written} bytes" if written > TARGET["scratch_bytes"] else None
