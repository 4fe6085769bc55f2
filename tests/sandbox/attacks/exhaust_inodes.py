# Makes empty files, folders, links and pipes, which take no space, until there are no more names.
# contained: passed
# in the open: succeeds
def attack():
    os.makedirs("hostile-many", exist_ok=True)
    made = 0
    for i in range(2 * TARGET["scratch_files"]):
        path = f"hostile-many/{i}"
        try:
            [lambda p: open(p, "x").close(), os.mkdir, lambda p: os.symlink("/", p)][i % 3](path)
            made += 1
        except OSError:
            break
    return f"{made} names" if made > TARGET["scratch_files"] else None
