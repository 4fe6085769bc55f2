# Asks for a socket of every family and type, and for pairs of them: netlink, packet, vsock, raw, alg.
# Virtual machines' vsock and some others belong to no network namespace at all.
# contained: passed
# in the open: succeeds
def attack():
    unix = 1
    return first(
        {
            f"{name} {family} {kind}": lambda name=name, family=family, kind=kind: (
                syscall("socket", family, kind, 0)
                if name == "socket"
                else syscall("socketpair", family, kind, 0, (0).to_bytes(8, "little"))
            )
            for family in range(48)
            for kind in (1, 2, 3, 5, 10)
            for name in ("socket", "pair")
            if (name, family) != ("pair", unix)
        }
    )
