# Fills the disk: many files, one large file, space allocated without writing, files removed while open.
# contained: passed
# in the open: succeeds
def attack():
    total, keep = 0, []
    for i in range(4 * TARGET["scratch_bytes"] >> 20):
        try:
            file = open(f"hostile-{i}", "wb", buffering=0)
            keep.append(file)
            os.unlink(file.name)
            total += file.write(bytes(1 << 20))
        except OSError:
            break
    for i, file in enumerate(keep[:8]):
        try:
            os.posix_fallocate(file.fileno(), 0, (2 + i) << 20)
            total += (1 + i) << 20
        except OSError:
            pass
    return f"{total} bytes" if total > TARGET["scratch_bytes"] else None
