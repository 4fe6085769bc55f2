# Rearranges the file system: mounts, unmounts, new roots, by the old calls and the new ones.
# Read-only is a property of a mount, and whoever may mount can mount again.
# contained: passed
import ctypes


def attack():
    place = os.path.abspath("hostile-mount")
    os.makedirs(place, exist_ok=True)
    where = place.encode()
    recursive_bind, remount, here = 4096 | 16384, 32 | 4096, -100
    attributes = (ctypes.c_uint64 * 4)(0, 1, 0, 0)
    return first(
        {
            "tmpfs": lambda: syscall("mount", b"none", where, b"tmpfs", 0, 0),
            "proc": lambda: syscall("mount", b"none", where, b"proc", 0, 0),
            "sysfs": lambda: syscall("mount", b"none", where, b"sysfs", 0, 0),
            "devpts": lambda: syscall("mount", b"none", where, b"devpts", 0, 0),
            "overlay": lambda: syscall("mount", b"none", where, b"overlay", 0, b"lowerdir=/usr:/"),
            "bind": lambda: syscall("mount", b"/", where, b"", recursive_bind, 0),
            "remount": lambda: syscall("mount", b"none", where, b"", remount, 0),
            "propagation": lambda: syscall("mount", b"none", where, b"", 1 << 20, 0),
            "unmount": lambda: syscall("umount2", where, 2),
            "chroot": lambda: os.chroot(place),
            "pivot_root": lambda: syscall("pivot_root", where, where),
            "open_tree": lambda: syscall("open_tree", here, b"/", 1),
            "move_mount": lambda: syscall("move_mount", 0, b"", here, where, 4),
            "fsopen": lambda: syscall("fsopen", b"tmpfs", 0),
            "fsconfig": lambda: syscall("fsconfig", 0, 6, 0, 0, 0),
            "mount_setattr": lambda: syscall("mount_setattr", here, where, 0, attributes, 32),
        }
    )
