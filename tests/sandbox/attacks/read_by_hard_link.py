# Gives a file of the system a second name in the scratch folder, by path and by descriptor.
# A hard link keeps what a later cleaning removes, and its mode could be changed there.
# contained: passed
import sys


def attack():
    sources = [*TARGET["canaries"], os.__file__, sys.executable, "/etc/passwd", "/dev/null"]
    empty_path, here = 0x1000, -100

    def by_descriptor(source):
        return syscall("linkat", os.open(source, os.O_PATH), b"", here, b"hostile-linked", empty_path)

    return first(
        {
            **{f"link {s}": lambda s=s: os.link(s, "hostile-hard-link") for s in sources},
            **{f"linkat {s}": lambda s=s: by_descriptor(s) for s in sources},
        }
    )
