"""A lane's life, from the start of its interpreter: read the configuration, put up the walls, fork the
zygote, become the judge.

The host's socket is standard input. The first message is the configuration, the first answer
``{"layers": {name: "" or what is wrong}, "error": ""}``; then one program at a time.
"""

from __future__ import annotations

import _socket
import gc
import json
import os
import sys
from typing import Any

from . import judge, probes, program, zygote
from .confine import (
    Files,
    LaneFilter,
    ProgramFilter,
    drop_capabilities,
    landlock,
    landlock_rules,
    limit,
    no_new_privileges,
)
from .namespaces import enter
from .syscalls import CAP_SYS_ADMIN, PR_SET_DUMPABLE, PR_SET_PDEATHSIG, make, prctl
from .wire import Reader, send

MAX_CONFIGURATION = 1 << 20
SIGKILL = 9


def main() -> None:
    host = os.dup(0)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    reader = Reader(host)
    config = reader.receive(MAX_CONFIGURATION)
    del sys.path[0]  # the folder of this package
    try:
        no_new_privileges()
        if config["scratch"] is not None:
            shown = [*config["files"], *([path, path] for path in config["devices"])]
            enter(shown, config["links"], config["hidden"], config["scratch"])
            if config["moved"] is not None:
                _move(*config["moved"])
        else:
            os.chdir(config["own"])
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        walls = _walls(config)
        if os.fork() == 0:
            ours.close()
            os.close(host)
            os.dup2(null, 2)
            _become_zygote(theirs, walls, config)
        theirs.close()
        layers = json.loads(ours.recv(1 << 16))
        _confine_judge(walls)
    except (OSError, ValueError) as err:
        send(host, {"layers": {}, "error": str(err) or type(err).__name__})
        return
    send(host, {"layers": layers, "error": ""})
    os.dup2(null, 2)
    judge.serve(reader, host, ours)


def _move(outside: str, inside: str) -> None:
    """The interpreter's folder has another path from now on: what is imported later is found there."""

    def moved(path: str) -> str:
        return inside + path[len(outside) :] if path.startswith(outside + "/") else path

    for name, value in list(vars(sys).items()):
        if isinstance(value, str):
            setattr(sys, name, moved(value))
    sys.path[:] = map(moved, sys.path)
    sys.path_importer_cache.clear()
    for module in list(sys.modules.values()):
        folders = getattr(module, "__path__", None)
        if isinstance(folders, list):
            folders[:] = map(moved, folders)


def _walls(config: dict[str, Any]) -> zygote.Walls:
    return zygote.Walls(
        config["limits"],
        Files(config["readable"], config["devices"], config["own"]),
        use_landlock=config["landlock"],
        use_seccomp=config["seccomp"],
        scratch=config["scratch"],
    )


def _become_zygote(control: _socket.socket, walls: zygote.Walls, config: dict[str, Any]) -> None:
    try:
        prctl(PR_SET_PDEATHSIG, SIGKILL)
        prctl(PR_SET_DUMPABLE, 0)
        found = probes.run(walls, config["marks"]) if config["marks"] else {}
        drop_capabilities(keep=1 << CAP_SYS_ADMIN if walls.scratch is not None else 0)
        walls.clean()
        limit(walls.limits)  # the programs inherit them, and this filter
        if walls.use_seccomp:
            LaneFilter().install()
        program.rehearse()
        gc.collect()
        gc.freeze()
        control.send(json.dumps(found).encode())
        zygote.serve(control, walls)
    finally:
        os._exit(1)


def _confine_judge(walls: zygote.Walls) -> None:
    drop_capabilities()
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_PDEATHSIG, SIGKILL)
    if walls.use_landlock:
        rules = landlock_rules(walls.files)
        make(landlock(rules))
        os.close(rules)
    limit(walls.limits)
    if walls.use_seccomp:
        LaneFilter().install()
        ProgramFilter(may_send=True).install()
