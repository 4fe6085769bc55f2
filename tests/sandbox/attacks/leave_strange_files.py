# Leaves what is hard to remove: folders without rights, names of odd bytes, pipes, links in circles,
# files open, locked and mapped, and none of it closed.
# contained: passed
import fcntl
import mmap

KEEP = []


def attack():
    for name in (b"hostile\xff\xfe", b"hostile\n\t ", b"-rf *", b"hostile'\"$(x)`x`", b"..."):
        os.mkdir(name)
        open(os.path.join(name, b"x"), "x").close()
        os.chmod(name, 0)
    for make in (lambda: os.mkfifo("hostile-pipe"), lambda: os.mknod("hostile-node")):
        try:
            make()
        except OSError:
            pass
    os.symlink("hostile-circle-2", "hostile-circle-1")
    os.symlink("hostile-circle-1", "hostile-circle-2")
    os.symlink("/", "hostile-root")
    file = open("hostile-open", "w+b")
    file.truncate(1 << 20)
    KEEP.append((file, mmap.mmap(file.fileno(), 0)))
    fcntl.flock(file, fcntl.LOCK_EX)
    os.chdir(b"...") if os.access(b"...", os.X_OK) else None
    os.umask(0o777)
