#!/usr/bin/env python3
"""How waiting threads share a machine: wall and CPU time, idle and with endless loops beside.

Threads that meet at every small layer can wait for each other in a loop (quick where each has a core of
its own) or asleep (quick where they share cores). libgomp, which torch and llama.cpp use on Linux,
takes GOMP_SPINCOUNT for the turns of the loop before it sleeps; 300,000 is its own choice.

    python scripts/bench_waiting.py FOLDER FILE.gguf [--spin default 100 10000] [--loops 4]

Each model (a Hugging Face folder runs on torch, a .gguf file on llama.cpp) scores windows of 256
tokens, then generates greedily, in a process of its own for each setting; idle and loaded runs
alternate in it. With L loops beside a program of C threads on C cores, a ratio of (C + L) / C is in
proportion.
On a machine that others use, `nice -n -20` (as root) gives it and its loops the cores.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from qeval.core.cores import usable_cores

LOOP = [sys.executable, "-c", "while True: pass"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--spin", nargs="+", default=["default", "0", "100", "1000", "10000", "100000"])
    parser.add_argument("--loops", type=int, default=2 * usable_cores())
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--new", type=int, default=64, help="tokens generated")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args)
        return
    print(f"{usable_cores()} cores, {args.threads} threads, {args.loops} loops; load {os.getloadavg()}")
    print(f"{'':32}{'spin':>9}{'idle s':>9}{'CPU s':>8}{'loaded s':>10}{'CPU s':>8}{'ratio':>8}")
    for model in args.models:
        for spin in args.spin:
            for what, found in measured(model, spin, args).items():
                idle, loaded = found["idle"], found["loaded"]
                print(
                    f"{model.name[:20] + ', ' + what:32}{spin:>9}{idle[0]:9.2f}{idle[1]:8.2f}"
                    f"{loaded[0]:10.2f}{loaded[1]:8.2f}{loaded[0] / idle[0]:8.1f}",
                    flush=True,
                )


def measured(model: Path, spin: str, args: argparse.Namespace) -> dict[str, Any]:
    env = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    env |= {"OMP_NUM_THREADS": str(args.threads)}
    env |= {} if spin == "default" else {"GOMP_SPINCOUNT": spin}
    command = [sys.executable, __file__, str(model), "--child", "--loops", str(args.loops)]
    for name in ("threads", "windows", "new", "repeats"):
        command += [f"--{name}", str(getattr(args, name))]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def child(args: argparse.Namespace) -> None:
    import numpy as np

    from qeval.core.settings import EngineSettings
    from qeval.engines.base import ENGINES, Sampling
    from qeval.formats.describe import describe_folder

    [path] = args.models
    settings = EngineSettings("cpu", "float32", n_threads=args.threads)
    if path.is_dir():
        lm = ENGINES["hf"].open(describe_folder(path, "float32"), settings)
    else:
        from qeval.core.artifact import Artifact

        lm = ENGINES["llamacpp"].open(Artifact(path, "llamacpp", False, 0, 0, None, None), settings)
    rng = np.random.default_rng(0)
    windows = [[int(i) for i in row] for row in rng.integers(1, lm.vocab_size, (args.windows, 256))]
    sampling = Sampling(max_new_tokens=args.new)
    runs = {
        "scoring": lambda: list(lm.nll(windows)),
        "generating": lambda: list(lm.generate([windows[0][:32]], sampling)),
    }
    found: dict[str, dict[str, Any]] = {name: {"idle": [], "loaded": []} for name in runs}
    for repeat in range(args.repeats + 1):
        for name, run in runs.items():
            idle = timed(run)
            with ExitStack() as stack:
                for _ in range(args.loops):
                    loop = stack.enter_context(subprocess.Popen(LOOP))
                    stack.callback(loop.kill)
                time.sleep(0.3)
                loaded = timed(run)
            if repeat:  # the first is a warm-up
                found[name]["idle"].append(idle)
                found[name]["loaded"].append(loaded)
    for times in found.values():
        for state, runs_of_it in times.items():
            times[state] = [median(column) for column in zip(*runs_of_it, strict=True)]
    print(json.dumps(found))


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds of wall and CPU time."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    run()
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
