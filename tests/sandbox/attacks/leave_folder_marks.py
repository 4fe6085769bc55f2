# Leaves no file, but changes the folder itself: its times and its mode, as a message to the next program.
# A cleaner that looks for names only sees an empty folder.
# contained: passed
def attack():
    os.utime("/tmp", ns=(0x686F7374696C65, 0x686F7374696C65))
    os.chmod("/tmp", 0o1755)
