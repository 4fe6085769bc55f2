# Changes what binds itself: the filter, dumpability, its tracer, its parent, its personality, its memory
# layout; and asks whether a crash would start the host's crash handler.
# Where core_pattern is a pipe, the kernel starts a root's program for every crash, whatever the limit on
# core files, unless this is 1 or the process is not dumpable.
# contained: passed
# in the open: succeeds
import resource


def attack():
    options = {
        "not dumpable": (4, 0),
        "dumpable": (4, 1),
        "dumpable by root": (4, 2),
        "tracer": (0x59616D61, -1),
    }
    options |= {
        "subreaper": (36, 1),
        "death": (1, 0),
        "memory map": (35, 99),
        "secure": (28, 1),
        "tsc": (26, 1),
    }
    options |= {
        "seccomp": (22, 1),
        "speculation": (53, 0, 0),
        "timer slack": (29, 1),
        "mce": (33, 1, 1),
    }
    got = first(
        {
            **{n: lambda o=o: syscall("prctl", *o, *(0,) * (5 - len(o))) for n, o in options.items()},
            "personality": lambda: syscall("personality", 0x0040000 | 0x0400000),
            "filter": lambda: syscall("seccomp", 1, 0, bytes(16)),
        }
    )
    if got:
        return got
    try:
        dumpable = syscall("prctl", 3, 0, 0, 0, 0)
    except OSError:  # it may not even ask; that it is not dumpable is seen from outside
        return None
    limit = resource.getrlimit(resource.RLIMIT_CORE)
    return None if dumpable == 0 or limit == (1, 1) else f"dumpable {dumpable}, core files {limit}"
