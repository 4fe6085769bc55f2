#!/usr/bin/env python3
"""What small cells cost in CPU seconds (user and system time of a run and all that it starts): two
checkouts of qeval in turn, so that what else the machine does falls on both.

    git worktree add /tmp/before COMMIT
    python scripts/bench_startup.py MODEL_FOLDER --before /tmp/before

Builds come from the cache, where they are not what is measured.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parents[1]
CELLS = {  # name: quantizations, limits of the text
    "one hf cell": ("[none]", (1,)),
    "a build (rtn 4) and its hf cell": ("[rtn: 4]", (1,)),
    "four hf cells (none, rtn 4)": ("[none, rtn: 4]", (1, 2)),
    "one llamacpp cell (Q8_0)": ("[gguf: {type: Q8_0}]", (1,)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--before", type=Path, required=True, help="the other checkout")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", action="append", default=[], help="rows with this in their name")
    args = parser.parse_args()
    print(f"{'':34}{'CPU s before':>14}{'after':>8}{'ratio':>7}{'wall s before':>15}{'after':>8}")
    for name, (quantizations, limits) in CELLS.items():
        if args.only and not any(part in name for part in args.only):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            spec = Path(scratch) / "spec.yaml"
            tasks = [f"{{perplexity: {{dataset: pydoc, limit: {limit}}}}}" for limit in limits]
            spec.write_text(
                f"name: startup\nmodels: [{args.model.resolve()}]\ndtype: float32\n"
                f"quantizations: {quantizations}\ntasks: [{', '.join(tasks)}]\n"
            )
            keep = "build" not in name
            if keep:
                measured(HERE, spec, Path(scratch), "first", keep)
            found = [
                [measured(root, spec, Path(scratch), f"{i}{j}", keep) for j, root in enumerate(both)]
                for i in range(args.repeats)
                for both in [(args.before.resolve(), HERE)]
            ]
        before, after = (
            tuple(map(median, zip(*side, strict=True))) for side in zip(*found, strict=True)
        )
        print(
            f"{name:34}{before[0]:14.1f}{after[0]:8.1f}{after[0] / before[0]:7.2f}"
            f"{before[1]:15.1f}{after[1]:8.1f}",
            flush=True,
        )


def measured(root: Path, spec: Path, scratch: Path, name: str, keep: bool) -> tuple[float, float]:
    """CPU and wall seconds of a run in a new results folder, by the qeval of ``root``."""
    cache = scratch / ("cache" if keep else f"cache-{name}")
    env = {**os.environ, "PYTHONPATH": str(root), "QEVAL_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "qeval", "run", str(spec), "--results", str(scratch / name)]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [*command, "--device", "cpu", "--quiet", "--no-table"], check=True, env=env, cwd=scratch
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, time.perf_counter() - start


if __name__ == "__main__":
    main()
