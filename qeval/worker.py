"""The worker process: one job file in, one result file out
(``python -m qeval.worker JOB RESULT FD``), or a zygote that forks one for each job (jobs/zygote.py).

It and what it starts end with the ``qeval run`` that started it (guard.py). Progress goes as one
JSON line a step to the file descriptor FD; whatever libraries print goes to the job's log.
"""

from __future__ import annotations

import errno
import faulthandler
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence, Set
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qeval.core import machine, provenance
from qeval.core.cores import threads
from qeval.core.endpoint import SERVER
from qeval.core.errors import EngineError, NotOfferedError, QevalError, StoreError, with_class
from qeval.core.files import disk_message, write_atomic
from qeval.core.progress import Progress, kind
from qeval.core.record import MemoryReport, finite
from qeval.engines.base import ENGINES
from qeval.jobs import zygote
from qeval.jobs.job import Job, JobResult, Stopwatch
from qeval.jobs.memory import VramSampler, peak_rss
from qeval.models.endpoint import endpoint_of
from qeval.models.finite import check_finite
from qeval.quant.base import METHODS, BuildContext
from qeval.store.artifacts import ArtifactCache
from qeval.store.references import References

if TYPE_CHECKING:
    from qeval.core.artifact import Artifact
    from qeval.core.settings import EngineSettings
    from qeval.data.calibration import Calibration, CalibrationOptions
    from qeval.engines.base import LM, Logits
    from qeval.tasks.base import Predictor, TaskContext


def main(argv: Sequence[str]) -> int:
    job_path, result_path, fd = Path(argv[0]), Path(argv[1]), int(argv[2])
    faulthandler.enable()  # a crash in a library's C code says where, in the log
    faulthandler.register(signal.SIGTERM, chain=True)  # and so does a job that its timeout ends
    os.register_at_fork(after_in_child=lambda: faulthandler.unregister(signal.SIGTERM))
    job = Job.from_json(job_path.read_text(encoding="utf-8"))
    # Before any library reads it: builds, and what engines do not start themselves, keep to it, too.
    os.environ["OMP_NUM_THREADS"] = str(threads(job.settings.n_threads))
    result = _guarded(job, _reporter(fd))
    write_atomic(result_path, json.dumps(finite(asdict(result)), allow_nan=False))
    return 0 if result.status == "ok" else 1


def _guarded(job: Job, progress: Progress) -> JobResult:
    """Run the job; every failure becomes a result with one line, its traceback goes to the log."""
    watch = Stopwatch()
    try:
        return _KINDS[job.kind](job, progress)
    except Exception as err:
        traceback.print_exception(err)  # to the log
        status, error = _explained(err, job)
    timing = watch.timing()
    found = asdict(provenance.conditions(job.settings))
    return JobResult(status, error, {}, None, timing, provenance.collect(), found)


def _explained(err: Exception, job: Job) -> tuple[Literal["failed", "oom", "skipped"], str]:
    """The status that an exception gives a job, and its one line."""
    if isinstance(err, NotOfferedError):
        return "skipped", str(err)
    if isinstance(err, QevalError):
        return "oom" if "out of memory" in str(err).lower() else "failed", str(err)
    if isinstance(err, OSError):
        return "failed", disk_message(job.out, err) if err.errno else str(err)
    error = with_class(err)
    if "No space left on device" in error:  # libraries that write for themselves
        error = disk_message(job.out, OSError(errno.ENOSPC, error))
    return "oom" if _is_oom(err) else "failed", error


def _is_oom(err: Exception) -> bool:
    """torch raises OutOfMemoryError on CUDA and a RuntimeError of its CPU allocator."""
    text = str(err)
    names = ("OutOfMemoryError", "MemoryError")
    return type(err).__name__ in names or "can't allocate memory" in text or "out of memory" in text


def _build(job: Job, progress: Progress) -> JobResult:
    watch = Stopwatch()
    method = METHODS[job.name]()
    context = BuildContext(
        model=job.model,
        out=job.out,
        base=job.artifact,
        calibration=lambda options: _calibration(job, options),
        progress=progress,
        cache_dir=job.cache_dir,
        device=job.settings.device,
        n_threads=job.settings.n_threads,
        unfinished=ArtifactCache(job.cache_dir).unfinished(job.key),
    )
    sampler, load = VramSampler(), machine.Load()
    sampler.start()
    if job.artifact is None and job.model.path.is_dir():  # else it was checked with the base
        progress(0, 0, "checking the weights")
        check_finite(job.model.path, job.model.dtype if method.engine == "hf" else None)
    progress(0, 0, "quantizing")
    artifact = method.build(method.Options.model_validate(job.options), context)
    memory = MemoryReport(vram_process=sampler.stop(), ram_peak=peak_rss())
    timing = {**watch.timing(), "build_s": watch.seconds()}
    found = asdict(provenance.conditions(job.settings, load=load.stop()))
    return JobResult(
        "ok", None, artifact.to_json(), asdict(memory), timing, provenance.collect(), found
    )


def _calibration(job: Job, options: CalibrationOptions) -> Calibration:
    from qeval.data.calibration import draw
    from qeval.data.datasets import DataSource
    from qeval.models.tokenizer import load_tokenizer

    return draw(DataSource(job.data_dir), load_tokenizer(job.model), options)


def _context(job: Job, progress: Progress) -> TaskContext:
    from qeval.data.datasets import DataSource
    from qeval.tasks.base import TaskContext

    floor = job.settings.execution.running.floor
    return TaskContext(
        model=job.model,
        data=DataSource(job.data_dir),
        out=job.out,
        progress=progress,
        limit=job.limit,
        batch_size=job.settings.batch_size,
        weak_sandbox=job.weak_sandbox,
        n_threads=threads(job.settings.n_threads),
        passes=floor.seeds if floor and floor.kind == "rounding" else 1,
        endpoint=endpoint_of(job.artifact) if job.artifact else None,
    )


def _settings(asked: EngineSettings, needs: Set[str]) -> EngineSettings:
    return replace(asked, layers_apart="tensors" in needs)


def _open(artifact: Artifact, settings: EngineSettings) -> LM:
    floor = settings.execution.running.floor
    if floor and floor.kind == "repetition":  # in batches of another size than other rows
        settings = replace(settings, batch_size=2 if settings.batch_size == 1 else 1)
    return ENGINES[artifact.engine].open(artifact, settings)


def _baseline(job: Job, stack: ExitStack) -> Predictor | None:
    """What the row is compared with, from the cache or opened now."""
    against = job.against
    if against is None:
        return None
    if against.reference is not None:
        found = References(job.cache_dir).find(against.reference)
        if found is None:
            raise StoreError("the baseline's predictions are no more in the cache: run again")
        return found
    settings = replace(job.settings, execution=against.execution)
    return stack.enter_context(closing(_open(against.artifact, settings)))


def _reference(job: Job, progress: Progress) -> JobResult:
    """Keep what the baseline predicts."""
    import numpy as np

    from qeval.tasks.base import TASKS

    watch, task = Stopwatch(), TASKS[job.name]()
    assert job.artifact is not None
    progress(0, 0, "loading the model")
    with closing(_open(job.artifact, _settings(job.settings, task.needs))) as lm:
        options = task.Options.model_validate(job.options)
        rows, stream = task.remember(lm, options, _context(job, progress))
        done, parts = 0, iter(stream)
        part: Logits | None = next(parts)
        assert part is not None
        with References(job.cache_dir).writing(job.key, rows, part.shape[-1]) as writer:
            while part is not None:
                on_cpu = part if isinstance(part, np.ndarray) else part.float().cpu().numpy()
                plain = on_cpu.astype(np.float32, copy=False)
                writer.append(plain)
                done += len(plain)
                progress(done, rows, "tokens")
                part = next(parts, None)
    found = asdict(provenance.conditions(job.settings))
    return JobResult("ok", None, {}, None, watch.timing(), provenance.collect(), found)


def _evaluate(job: Job, progress: Progress) -> JobResult:
    from qeval.tasks.base import TASKS, measures_machine

    watch = Stopwatch()
    task = TASKS[job.name]()
    assert job.artifact is not None  # the parent built it first
    sampler = VramSampler()
    sampler.start()
    progress(0, 0, "loading the model")
    with ExitStack() as stack:
        context = replace(_context(job, progress), baseline=_baseline(job, stack))
        lm = stack.enter_context(closing(_open(job.artifact, job.settings)))
        _check_signature(lm, job.out)
        progress(0, 0, "measuring")
        loaded, load = watch.seconds(), machine.Load()
        result = task.run(lm, task.Options.model_validate(job.options), context)
        load_found = load.stop()
        memory = asdict(lm.memory(result.context or lm.max_seq_len))
        engine_facts, engine_notes = lm.facts(), lm.notes()
    conditions = provenance.conditions(job.settings, engine_facts, load_found)
    vram = sampler.stop()
    elsewhere = conditions.device == SERVER
    on_cpu = conditions.device == "cpu" or elsewhere  # then the driver's number is another process's
    ram = None if elsewhere else peak_rss()
    memory |= {"vram_process": None if on_cpu else vram, "ram_peak": ram}
    memory["rank"] = result.memory_rank
    if job.against is not None and job.against.reference is None:  # two models' peaks are no row's
        memory |= dict.fromkeys(("vram_allocated", "vram_reserved", "vram_process", "ram_peak"))
    timing = {**watch.timing(), "load_s": loaded, "run_s": watch.seconds() - loaded}
    noise = provenance.busy_note(conditions) if measures_machine(task) and not elsewhere else ()
    payload = {
        "metrics": [asdict(m) for m in result.metrics],
        "notes": [*result.notes, *noise, *engine_notes, *_contamination(job, result.facts)],
        "files": {name: str(path) for name, path in result.files.items()},
    }
    chosen = {k: v for k, v in engine_facts.items() if k not in provenance.ENGINE_FACTS}
    settings = {k: v for k, v in asdict(job.settings).items() if k != "execution"}  # the cell has it
    facts = {**provenance.collect(), **chosen, **result.facts, "settings": settings}
    if sampler.source and not on_cpu:
        facts["vram_source"] = sampler.source
    return JobResult("ok", None, payload, memory, timing, facts, asdict(conditions))


def _check_signature(lm: LM, out: Path) -> None:
    """What a killed run left in a cell's folder came from the same server, or is not gone on with.

    Raises:
        EngineError: the server is another one since then.
    """
    found = lm.signature() if hasattr(lm, "signature") else {}  # engines of others may have none
    if not found:
        return
    file = out / "server.json"
    kept = any(other.stat().st_size for other in out.iterdir() if other != file)
    if kept and file.is_file() and (before := json.loads(file.read_text(encoding="utf-8"))) != found:
        names = [name for name in found if before.get(name) != found[name]]
        changes = ", ".join(f"{name} was {before.get(name)!r}, is {found[name]!r}" for name in names)
        raise EngineError(
            f"the server changed since this cell was begun ({changes}): to begin anew, remove {out}"
        )
    write_atomic(file, json.dumps(found, indent=1))


_KINDS = {"build": _build, "eval": _evaluate, "reference": _reference}


def _contamination(job: Job, facts: Mapping[str, object]) -> list[str]:
    """A quantizer that was calibrated on the evaluated text looks better than it is."""
    assert job.artifact is not None
    calibration = job.artifact.calibration or {}
    if calibration.get("text_sha256") and calibration["text_sha256"] == facts.get("text_sha256"):
        return [
            f"calibrated on the evaluated text ({calibration.get('dataset')}): looks better than it is"
        ]
    return []


def _reporter(fd: int) -> Progress:
    """Writes ``[done, total, unit]`` lines, ten a second at most, and each new phase; a parent that
    stopped reading is not our problem."""
    last, phase = 0.0, ""

    def report(done: int, total: int, unit: str) -> None:
        nonlocal last, phase
        now = time.monotonic()
        if kind(unit) == phase and done < total and now - last < 0.1:
            return
        last, phase = now, kind(unit)
        try:
            os.write(fd, (json.dumps([done, total, unit]) + "\n").encode())
        except BrokenPipeError:
            return

    return report


if __name__ == "__main__":
    if sys.argv[1] == zygote.FLAG:
        sys.exit(zygote.serve(sys.argv[2:], main))
    sys.exit(main(sys.argv[1:]))
