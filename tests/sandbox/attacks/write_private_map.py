# Writes to a private map of a library's file and to the program's own code, then looks at the file.
# Copy on write keeps the file as it is ("Dirty COW" was the exception).
# contained: passed
import mmap
import threading


def attack():
    path = os.__file__
    with open(path, "rb") as file:
        before = file.read(4096)
        pages = mmap.mmap(file.fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    stop = []

    def forget():
        while not stop:
            pages.madvise(mmap.MADV_DONTNEED)

    racer = threading.Thread(target=forget, daemon=True)
    racer.start()
    for _ in range(2000):
        pages[0:7] = b"hostile"
    stop.append(1)
    racer.join()
    with open(path, "rb") as file:
        return None if file.read(4096) == before else f"changed {path}"
