"""What runs inside the sandbox. Imported under the name ``inside`` by a bare interpreter that has only
the standard library (see ``lane.py``): nothing here may import qeval or a package.

    preload.py      what most programs import; comes first
    main.py         a lane's life: enter the walls, fork the zygote, become the judge
    namespaces.py   the walls around a lane: namespaces, a small read-only root, a scratch file system
    confine.py      the walls around one program: limits, capabilities, Landlock, seccomp
    zygote.py       forks one process per program, ends it, cleans up after it
    program.py      the forked process: runs the code and answers calls
    judge.py        runs the tests; asks the program's process for values
    values.py       plain values as JSON
    wire.py         frames over a socket
    probes.py       tries every wall
"""
