# Reads what a machine tells about itself and its users: accounts, names, resolvers, keys of the host.
# Many sandboxes show /etc whole, because programs expect it.
# contained: passed
# in the open: succeeds
import pwd


def attack():
    names = ["passwd", "shadow", "group", "hostname", "hosts", "resolv.conf", "machine-id", "fstab"]
    names += ["ssh/ssh_host_rsa_key", "ssl/private", "environment", "sudoers"]
    return first(
        {
            **{name: lambda name=name: os.stat("/etc/" + name).st_size for name in names},
            "accounts": lambda: pwd.getpwall()[0].pw_name,
            "account of 0": lambda: pwd.getpwuid(0).pw_name,
        }
    )
