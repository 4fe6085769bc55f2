# Asks /proc about everyone: command lines, environments, memory, open files, mounts, kernel symbols.
# A sandbox that leaves /proc mounted shows at least its own parents.
# contained: passed
# in the open: succeeds
import glob


def attack():
    seen = sorted(glob.glob("/proc/[0-9]*/cmdline") + glob.glob("/proc/[0-9]*/environ"))
    if seen:
        return f"{len(seen)} files of processes"
    names = ["self/maps", "self/mem", "self/mountinfo", "self/root", "thread-self/status", "net/tcp"]
    names += [
        "kallsyms",
        "kcore",
        "kmsg",
        "cmdline",
        "meminfo",
        "sysrq-trigger",
        "sys/kernel/core_pattern",
    ]
    return first({name: lambda name=name: os.stat("/proc/" + name).st_mode for name in names})
