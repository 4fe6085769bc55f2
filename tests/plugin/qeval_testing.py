"""A third party's package for qeval: a method, an engine and a task, found by entry points.

Everything runs without torch, so that the runner, the worker, the store and the command line can be
tested in milliseconds a job. The task misbehaves in every way a job can end.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
from pathlib import Path

import numpy as np

from qeval.core.artifact import Artifact
from qeval.core.errors import BuildError, EngineError, ModelError
from qeval.core.extras import require
from qeval.core.options import Options
from qeval.core.record import MemoryReport, Metric
from qeval.data.calibration import CalibrationOptions
from qeval.quant.base import Method, Packages
from qeval.tasks.base import TaskResult


class CopyOptions(Options):
    num_bits: int = 8
    simulated: bool = False
    fail: bool = False
    die: bool = False
    announced: bool = False  # whether `simulated` is told before the build
    needs: str | None = None  # a package
    reads: str | None = None  # a calibration text


class Copy(Method):
    """`copy`: writes num_bits into a file; the engine reads it back."""

    version = 1
    Options = CopyOptions
    scalar = "num_bits"
    engine = "ngram"

    def label(self, options):
        return f"copy{options.num_bits}" + (" fail" * options.fail) + (" die" * options.die)

    def simulates(self, options):
        return options.simulated if options.announced else None

    def packages(self, options):
        return (Packages("testing", (options.needs,)),) if options.needs else ()

    def reads(self, options):
        return CalibrationOptions(dataset=options.reads) if options.reads else None

    def build(self, options, context):
        path = context.out / "model.json"
        path.write_text(json.dumps({"num_bits": options.num_bits}))
        if options.fail:
            raise BuildError("this one never works: use another")
        if options.die:
            os.kill(os.getpid(), signal.SIGKILL)
        built = Path(os.environ.get("QEVAL_TEST_LOG", os.devnull))
        with built.open("a") as log:
            log.write(f"build {options.num_bits}\n")
        return Artifact(
            path, self.engine, options.simulated, 1000 * options.num_bits, 500, options.num_bits, 9.0
        )


class Old(Copy):
    """`old`: of the time when a method said that it works in place."""

    in_place = True


class Mute(Copy):
    """`mute`: for an engine that can do nothing."""

    engine = "mute"


class Far(Copy):
    """`far`: for an engine whose package is missing."""

    engine = "far"


class HereOptions(Options):
    path: str


class Here(Method):
    """`here`: weights that are there already."""

    version = 1
    Options = HereOptions
    scalar = "path"
    engine = None

    def label(self, options):
        return f"here {Path(options.path).name}"

    def find(self, options, model, cache_dir):
        path = Path(options.path).absolute()
        if not path.is_file():
            raise ModelError(f"{path}: no such file")
        return Artifact(path, "ngram", False, 8000, 500, 8.0, 9.0)


class NgramEngine:
    """A uniform distribution, so that perplexity is the vocabulary's size; num_bits 0 gives NaN."""

    name = "ngram"
    version = 1
    capabilities = frozenset({"nll", "steps", "memory"})
    shared_imports = "qeval.tasks.perplexity"  # its cells are forks; builds start an interpreter
    max_seq_len = 64
    vocab_size = 512

    def __init__(self, num_bits):
        self.num_bits = num_bits

    @classmethod
    def preflight(cls):
        pass

    @classmethod
    def open(cls, artifact, settings):
        return cls(json.loads(artifact.path.read_text())["num_bits"])

    def nll(self, windows, *, first=1):
        for ids in windows:
            value = np.nan if self.num_bits == 0 else np.log(512.0) + (len(set(ids)) % 7) / 100
            yield np.full(len(ids) - first, value, np.float32)

    def tokenize(self, text, *, special=True, parse_special=True):
        return None

    def memory(self, context):
        return MemoryReport(weights=1000 * self.num_bits, embeddings=500)

    def facts(self):
        return {}

    def notes(self):
        return ()

    def close(self):
        pass


class MuteEngine(NgramEngine):
    name = "mute"
    capabilities = frozenset({"memory"})


class FarEngine(NgramEngine):
    name = "far"

    @classmethod
    def preflight(cls):
        require("testing", "no_such_module")


def _refuse():
    try:
        Path("/no/such/file").read_bytes()
    except OSError as err:
        raise EngineError("it cannot") from err


class MisbehaveOptions(Options):
    how: str = "ok"
    marker: str | None = None  # a file: the first run misbehaves, later ones are ok


class Misbehave:
    """`misbehave`: ends its worker in the way that `how` says."""

    version = 1
    Options = MisbehaveOptions
    needs = frozenset({"nll"})
    on_simulated = False

    def label(self, options):
        return f"misbehave {options.how}"

    def preflight(self, options, data, *, weak_sandbox):
        pass

    def run(self, lm, options, context):
        how = options.how
        if options.marker and Path(options.marker).exists():
            how = "ok"
        elif options.marker:
            Path(options.marker).write_text("was here")
        if how == "hang":
            if os.fork() == 0:  # a child in the same group must die, too
                (context.out / "child.pid").write_text(str(os.getpid()))
                time.sleep(600)
            time.sleep(600)
        actions = {
            "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
            "exit": lambda: os._exit(7),
            "raise": lambda: 1 / 0,
            "oom": lambda: np.empty(2**60, np.uint8),
            "segfault": lambda: ctypes.string_at(0),
            "wait": lambda: time.sleep(600),
            "refuse": _refuse,
            "garbage": lambda: print("\x00" * 100, flush=True),
        }
        actions.get(how, lambda: None)()
        for i in range(3):
            context.progress(i + 1, 3, "steps")
        return TaskResult((Metric("steps", 3.0, "misbehave"),), context=8)


class StopwatchOptions(Options):
    seconds: float = 0.5


class Stopwatch:
    """`stopwatch`: a number that depends on the machine."""

    version = 1
    Options = StopwatchOptions
    needs = frozenset({"nll"})
    on_simulated = True
    measures_machine = True

    def label(self, options):
        return "stopwatch"

    def takes_limit(self, options):
        return False

    def preflight(self, options, data, *, weak_sandbox):
        pass

    def run(self, lm, options, context):
        return TaskResult((Metric("lap", options.seconds, "stopwatch", "s", n=1),), context=8)


class QuizOptions(Options):
    items: int = 24


class Quiz:
    """`quiz`: a share of right answers, more of them with more bits, that pairs item by item; and a
    number that no table shows."""

    version = 1
    Options = QuizOptions
    needs = frozenset({"nll"})
    on_simulated = True

    def label(self, options):
        return "quiz"

    def preflight(self, options, data, *, weak_sandbox):
        pass

    def run(self, lm, options, context):
        right = tuple(float(i % 8 < lm.num_bits) for i in range(options.items))
        share = sum(right) / len(right)
        metric = Metric(
            "right",
            share,
            "quiz/v1",
            "share",
            low=share / 2,
            high=(1 + share) / 2,
            n=len(right),
            values=right,
            units=tuple(f"item {i}" for i in range(len(right))),
            better="higher",
            pairs="item",
            change="points",
            heading="answers",
        )
        longest = Metric(
            "longest", 9.0, "quiz/v1", better="none", pairs="none", change="none", shown=False
        )
        return TaskResult((longest, metric), notes=("no cheating",), context=8, memory_rank=0)
