# Leaves no file, but changes the folder itself: its mode, its times, so that the next program is locked
# out of it, or finds a message there.
# A cleaner that looks for names only sees an empty folder.
# contained: passed
def attack():
    os.utime("/tmp", ns=(0x686F7374696C65, 0x686F7374696C65))
    os.chmod("/tmp", 0)
