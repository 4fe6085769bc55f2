# Lists the folders in which services, mounted disks and other users keep their things.
# A root that was bound whole shows all of them, though read-only.
# contained: passed
# in the open: succeeds
def attack():
    names = ["home", "root", "var", "run", "sys", "boot", "opt", "mnt", "media", "srv", "work", "proc"]
    names += [
        "usr/local/etc",
        "var/lib",
        "var/spool",
        "run/user",
        "run/docker.sock",
        "dev/shm",
        "dev/pts",
    ]
    return first({name: lambda name=name: os.listdir("/" + name) for name in names})
