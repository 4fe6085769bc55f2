# Raises its own limits, and those of the others, softly and hard.
# A soft limit is only advice to the one that it binds.
# contained: passed
# in the open: as root
import resource


def attack():
    names = [
        "AS",
        "CPU",
        "FSIZE",
        "NOFILE",
        "NPROC",
        "CORE",
        "MEMLOCK",
        "SIGPENDING",
        "MSGQUEUE",
        "RTPRIO",
    ]

    def raised(name):
        kind = getattr(resource, "RLIMIT_" + name)
        soft, hard = resource.getrlimit(kind)
        more = [hard, hard + 4096, -1] if hard != -1 else [-1]
        got = first(
            {str(n): lambda n=n: resource.setrlimit(kind, (n, max(n, hard))) for n in more if n != soft}
        )
        if got is None or resource.getrlimit(kind)[0] == soft:
            raise PermissionError
        return f"{soft} to {resource.getrlimit(kind)[0]}"

    def of_others(pid):
        return resource.prlimit(
            pid, resource.RLIMIT_NOFILE, resource.prlimit(pid, resource.RLIMIT_NOFILE)
        )

    others = [TARGET["victim"], TARGET["scorer"], 1]
    return first(
        {
            **{
                name: lambda name=name: raised(name)
                for name in names
                if hasattr(resource, "RLIMIT_" + name)
            },
            **{f"process {pid}": lambda pid=pid: of_others(pid) for pid in others},
        }
    )
