# Opens devices: disks, memory, terminals, the watchdog, kernel messages; makes device nodes of its own.
# A /dev that is bound whole is the machine; a node that can be made is as good as one.
# contained: passed
# in the open: succeeds
import glob
import stat


def attack():
    harmless = {"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"}
    for path in sorted(set(glob.glob("/dev/*") + glob.glob("/dev/*/*")) - harmless):
        if stat.S_ISCHR(os.lstat(path).st_mode) or stat.S_ISBLK(os.lstat(path).st_mode):
            return f"sees {path}"
    node = f"hostile-node-{os.getpid()}"
    got = first(
        {
            f"makes a node {major}:{minor}": lambda kind=kind, pair=(major, minor): os.mknod(
                node, kind | 0o666, os.makedev(*pair)
            )
            for kind, major, minor in (
                (stat.S_IFBLK, 8, 0),
                (stat.S_IFBLK, 259, 0),
                (stat.S_IFCHR, 1, 1),
                (stat.S_IFCHR, 5, 0),
                (stat.S_IFCHR, 10, 200),
            )
        }
    )
    if got:
        os.unlink(node)
    return got or first(
        {
            "changes /dev/null": lambda: os.chmod("/dev/null", 0o666),
            "makes a file there": lambda: open("/dev/hostile", "x").close(),
            "adds to the kernel's entropy": lambda: __import__("fcntl").ioctl(
                os.open("/dev/urandom", os.O_RDWR), 0x40045201, (0).to_bytes(4, "little")
            ),
        }
    )
