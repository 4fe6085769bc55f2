# Asks for twice its memory, piece by piece, and does not catch the error.
# contained: memory
def attack():
    keep = []
    while len(keep) < 2 * TARGET["memory_bytes"] >> 24:
        keep.append(bytearray(1 << 24))
    return f"{len(keep) * 16} MiB"
