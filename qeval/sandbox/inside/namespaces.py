"""The walls around a lane, made of the kernel's own calls; works as root and as an ordinary user.

Everything happens in a new user namespace, in which the lane's user is ``nobody`` (65534). Root first
becomes the host's ``nobody``, because the kernel does not limit the processes of the real root. What
the lane sees afterwards is a root of a few names in memory, read-only: the libraries that an
interpreter loads, four harmless devices, and /tmp, limited in bytes and files. No /proc, /sys, home,
nor /etc but the linker's cache. See namespaces(7), user_namespaces(7), pivot_root(2), mount_setattr(2).
"""

from __future__ import annotations

import os

from .seccomp import PIVOT_ROOT, number
from .syscalls import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    MNT_DETACH,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_BIND,
    MS_NODEV,
    MS_NOSUID,
    MS_PRIVATE,
    MS_REC,
    PR_SET_DUMPABLE,
    call,
    mount,
    prctl,
    set_mount_attributes,
    syscall,
)

NOBODY = 65534
HOSTNAME = "sandbox"
BUILT_AT = "/tmp"  # where the new root is put together, in a mount namespace of its own
EMPTY = "mode=755,size=4k,nr_inodes=1"
READ_ONLY = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID
NAMESPACES = (
    CLONE_NEWUSER
    | CLONE_NEWNS
    | CLONE_NEWPID
    | CLONE_NEWNET
    | CLONE_NEWIPC
    | CLONE_NEWUTS
    | CLONE_NEWCGROUP
)


Pairs = list[list[str]]  # of paths


def enter(shown: Pairs, links: Pairs, hidden: list[str], scratch: str) -> None:
    """Put this process behind the walls: the paths ``shown`` are there (inside, outside), and ``links``
    (path, where it leads), the folders ``hidden`` among them empty, /tmp a file system with the mount
    options ``scratch``. The pid namespace begins with the next child.

    Raises:
        OSError: a call that this machine or its settings do not allow, by name.
    """
    # Its own folder of /proc, for after the roots were changed; as a number, for "self" may move.
    proc = os.open(f"/proc/{os.getpid()}", os.O_PATH | os.O_DIRECTORY)
    user, group = os.geteuid(), os.getegid()
    if user == 0:  # mounts what only root can reach, then is nobody, who can change none of it
        call("unshare", CLONE_NEWNS)
        _change_root(shown, links, hidden)
        _become_nobody()
        call("unshare", NAMESPACES)
        _map_user(proc, NOBODY, NOBODY)
    else:
        call("unshare", NAMESPACES)
        _map_user(proc, user, group)
        _change_root(shown, links, hidden)
    os.close(proc)
    mount_scratch(scratch)
    call("sethostname", HOSTNAME.encode(), len(HOSTNAME))


def mount_scratch(options: str) -> None:
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, options)
    os.chdir("/tmp")


def renew_scratch(options: str) -> None:
    """Take /tmp away with all that is in it, and put an empty one in its place."""
    os.chdir("/")
    call("umount2", b"/tmp", MNT_DETACH)
    mount_scratch(options)


def _become_nobody() -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    prctl(PR_SET_DUMPABLE, 1)  # or its files in /proc would belong to root


def _map_user(proc: int, user: int, group: int) -> None:
    """The user and group outside are NOBODY inside; setgroups has to be denied first."""
    lines = {"setgroups": "deny", "uid_map": f"{NOBODY} {user} 1", "gid_map": f"{NOBODY} {group} 1"}
    for name, line in lines.items():
        fd = os.open(name, os.O_WRONLY, dir_fd=proc)
        os.write(fd, line.encode())
        os.close(fd)


def _change_root(shown: Pairs, links: Pairs, hidden: list[str]) -> None:
    """Put a root together and make it the only one."""
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    there = [(path, source) for path, source in shown if os.path.exists(source)]
    opened = {path: os.open(source, os.O_PATH) for path, source in there}  # it may lie below BUILT_AT
    mount("tmpfs", BUILT_AT, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=1m,nr_inodes=1024")
    for path, fd in opened.items():
        _show(path, fd)
        os.close(fd)
    for path, target in links:
        os.makedirs(os.path.dirname(BUILT_AT + path), exist_ok=True)
        os.symlink(target, BUILT_AT + path)
    for path in hidden:
        _hide(path)
    os.makedirs(BUILT_AT + "/tmp", exist_ok=True)
    os.chdir(BUILT_AT)
    syscall(number(PIVOT_ROOT) or -1, b".", b".")
    call("umount2", b".", MNT_DETACH)  # the old root, which lies over the new one
    os.chdir("/")
    set_mount_attributes("/", READ_ONLY, recursive=False)


def _show(path: str, fd: int) -> None:
    """Bind what ``fd`` was opened at to the same path under the new root, read-only."""
    source, target = f"/proc/self/fd/{fd}", BUILT_AT + path
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
    mount(source, target, "", MS_BIND | MS_REC)
    set_mount_attributes(target, READ_ONLY, recursive=True)


def _hide(path: str) -> None:
    target = BUILT_AT + path
    if os.path.isdir(target):
        mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV, EMPTY)
        set_mount_attributes(target, READ_ONLY, recursive=False)
