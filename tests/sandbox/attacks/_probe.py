# Not an attack: finds out by harmless means whether the walls stand, before anything that could hurt.
# contained: passed
import resource
import socket


def attack():
    for path in TARGET["canaries"]:
        if os.path.exists(path):
            return f"sees {path}"
    for path in ("/", "/usr", "/etc", "/dev", os.path.dirname(os.__file__)):
        if os.access(path, os.W_OK):
            return f"may write to {path}"
    if resource.getrlimit(resource.RLIMIT_AS) != (TARGET["memory_bytes"],) * 2:
        return "memory is not limited"
    return first(
        {
            "pids": lambda: os.getpgid(TARGET["victim"]),
            "signals": lambda: os.kill(TARGET["victim"], 0),
            "network": lambda: socket.create_connection(("127.0.0.1", TARGET["tcp"]), 1),
            "processes": lambda: os.fork() or os._exit(0),
        }
    )
