"""What every attack has at hand. This text is put before the attack's own, after ``TARGET``, a dict of
what to aim at (see ``_host.py``). An attacker would bring the same."""

import errno
import os
import platform

CALLS = {  # name: number on (x86_64, aarch64); one number where both agree
    "acct": (163, 89), "add_key": (248, 217), "adjtimex": (159, 171), "bpf": (321, 280),
    "capset": (126, 91), "chroot": (161, 51), "clone": (56, 220), "clone3": 435,
    "clock_settime": (227, 112), "close_range": 436, "connect": (42, 203), "execve": (59, 221),
    "execveat": (322, 281), "fanotify_init": (300, 262), "fcntl": (72, 25),
    "finit_module": (313, 273), "fork": (57, None), "fsconfig": 431, "fsopen": 430,
    "get_mempolicy": (239, 236), "get_robust_list": (274, 100), "getpgid": (121, 155),
    "inotify_init1": (294, 26), "init_module": (175, 105), "io_setup": (206, 0),
    "io_uring_setup": 425, "ioctl": (16, 29), "iopl": (172, None), "ioprio_set": (251, 30),
    "kcmp": (312, 272), "kexec_load": (246, 104), "keyctl": (250, 219), "kill": (62, 129),
    "landlock_create_ruleset": 444, "link": (86, None), "linkat": (265, 37), "lookup_dcookie": (212, 18),
    "mbind": (237, 235), "memfd_create": (319, 279), "memfd_secret": 447,
    "migrate_pages": (256, 238), "mknod": (133, None), "mknodat": (259, 33), "mlock": (149, 228),
    "mlockall": (151, 230), "modify_ldt": (154, None), "mount": (165, 40), "mount_setattr": 442,
    "move_mount": 429, "move_pages": (279, 239), "mq_open": (240, 180), "msgget": (68, 186),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "open_tree": 428,
    "openat2": 437, "perf_event_open": (298, 241), "personality": (135, 92), "pidfd_getfd": 438,
    "pidfd_open": 434, "pidfd_send_signal": 424, "pivot_root": (155, 41), "pkey_alloc": (330, 289),
    "prctl": (157, 167), "prlimit64": (302, 261), "process_madvise": 440, "process_mrelease": 448,
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "ptrace": (101, 117),
    "quotactl": (179, 60), "recvmsg": (47, 212), "request_key": (249, 218),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274), "sched_setscheduler": (144, 119), "seccomp": (317, 277),
    "semget": (64, 190), "sendmsg": (46, 211), "sendmmsg": (307, 269), "setdomainname": (171, 162),
    "sethostname": (170, 161), "setns": (308, 268), "setpriority": (141, 140), "setrlimit": (160, 164),
    "settimeofday": (164, 170), "shmget": (29, 194), "signalfd4": (289, 74), "socket": (41, 198),
    "socketpair": (53, 199), "swapoff": (168, 225), "swapon": (167, 224), "sync": (162, 81),
    "sysfs": (139, None), "syslog": (103, 116), "tee": (276, 77), "tgkill": (234, 131),
    "timer_create": (222, 107), "timerfd_create": (283, 85), "tkill": (200, 130),
    "umount2": (166, 39), "unshare": (272, 97), "userfaultfd": (323, 282), "uselib": (134, None),
    "ustat": (136, None), "vfork": (58, None), "vhangup": (153, 58), "vmsplice": (278, 75),
}  # fmt: skip


def number(name):
    found = CALLS[name]
    found = (
        found
        if isinstance(found, int)
        else dict(zip(("x86_64", "aarch64"), found)).get(platform.machine())
    )
    if found is None:
        raise OSError(errno.ENOSYS, f"no {name} on this machine")
    return found


def syscall(name, *arguments):
    """A system call by name or number, past the C library's wrappers; raises OSError."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(name if isinstance(name, int) else number(name)), *words)
    if result == -1:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def first(attempts):
    """What the first attempt got that did not raise, or None: ``attempts`` is name -> function."""
    for name, attempt in attempts.items():
        try:
            got = attempt()
        except Exception:
            continue
        return f"{name}: {got!r:.300}"
    return None
