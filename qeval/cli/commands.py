"""What each command does, as plain functions: options in, text or records out (main.py prints)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeval.core.console import echo, say, warn
from qeval.core.devices import device_name
from qeval.core.errors import UsageError, one_line, short
from qeval.core.files import real_path
from qeval.core.record import Record
from qeval.core.settings import default_cache_dir
from qeval.core.units import human_bytes
from qeval.plan.cells import Cell
from qeval.plan.spec import Experiment, load_spec
from qeval.report.results import read_results
from qeval.store.artifacts import ArtifactCache
from qeval.store.records import Store, latest
from qeval.store.results import FAILED, cell_name, failed_cells, failures_line

if TYPE_CHECKING:
    from qeval.core.settings import RunSettings
    from qeval.plan.survey import Survey
    from qeval.tasks.coding.score_file import ScoreReport


@dataclass(frozen=True)
class Outcome:
    """``records`` are those of the spec's cells; None for a dry run. ``last_line``: what failed, and
    where the logs are; empty where nothing did."""

    exit_code: int
    records: list[Record] | None
    last_line: str = ""


def run_spec(
    path: Path,
    results: Path | None = None,
    *,
    dry_run: bool = False,
    only: Sequence[str] = (),
    limit: int | None = None,
    data_dir: Path | None = None,
    cache_dir: Path | None = None,
    device: str | None = None,
    allow_weak_sandbox: bool = False,
    debug: bool = False,
) -> Outcome:
    """Plan the spec, do what has no ok record yet, return the records of all its cells. ``debug``
    prints the tracebacks of workers that fail."""
    from qeval.plan.preflight import fetch, refuse
    from qeval.plan.state import is_done
    from qeval.plan.survey import survey
    from qeval.run.display import Progress
    from qeval.run.executor import LocalExecutor
    from qeval.run.runner import Runner

    overrides = {"limit": limit, "device": device}
    experiment = load_spec(path, {k: v for k, v in overrides.items() if v is not None})
    settings = _settings(experiment, data_dir, cache_dir, allow_weak_sandbox)
    store = Store(results or Path("results") / experiment.name)
    found = survey(experiment, settings, store.latest(), only=only)
    if dry_run:
        _print_plan(found)
        return Outcome(1 if found.problems else 0, None)
    refuse(found.problems)
    if found.downloads:
        fetch(found.downloads)
        found = survey(experiment, settings, store.latest(), only=only)
        refuse(found.problems)
    with store.lock():
        _keep_spec(experiment, store.folder)
        done = store.latest()
        pending = [cell for cell in found.chosen_cells if not is_done(cell, done)]
        n = len(found.chosen_cells)
        say(f"{n - len(pending)} of {n} cells are done in {store.folder}")
        with Progress(len(pending), store.folder if debug else None) as progress:
            executor = LocalExecutor(store.folder.resolve() / "jobs")
            Runner(store, executor, settings, progress).run(pending)
        records = as_planned(store.read(), found.cells)
        warn(store.warnings)
    keys = {cell.key for cell in found.cells}
    failed = failed_cells([r for r in records if r.key in keys])  # not what failed elsewhere
    return (
        Outcome(FAILED, records, failures_line(failed, store.folder)) if failed else Outcome(0, records)
    )


def as_planned(records: list[Record], cells: list[Cell]) -> list[Record]:
    """The records of these cells, named and ordered as the cells are now, with what was measured of
    them under other conditions; and all builds."""
    planned = {cell.key: cell for cell in cells}
    elsewhere = {cell.key_anywhere: cell for cell in cells if cell.conditions}
    found = []
    for record in records:
        cell = planned.get(record.key) or elsewhere.get(record.cell.get("key_anywhere", ""))
        if cell is not None:
            where = record.cell.get("conditions")
            own = {"conditions": where} if where else {}
            record = replace(record, cell={**cell.describe(), **own})
        if cell is not None or record.kind == "build":
            found.append(record)
    return found


def _settings(
    experiment: Experiment, data_dir: Path | None, cache_dir: Path | None, weak: bool
) -> RunSettings:
    from qeval.core.settings import EngineSettings, RunSettings
    from qeval.data.datasets import DataSource

    spec = experiment.settings
    engine = EngineSettings(
        device=spec.device, batch_size=spec.batch_size, n_threads=spec.n_threads
    )  # dtype and trust_remote_code are each model's own
    cache = cache_dir or (Path(spec.cache_dir) if spec.cache_dir else default_cache_dir())
    data = data_dir or (Path(spec.data_dir) if spec.data_dir else None)
    found = DataSource(data).data_dir  # QEVAL_DATA_DIR where neither is given
    return RunSettings(
        cache_dir=real_path(cache),
        data_dir=real_path(found) if found else None,
        engine=engine,
        build_timeout=spec.timeout,
        weak_sandbox=weak,
    )


def _print_plan(found: Survey) -> None:
    """A line a cell on stdout; on stderr what would be downloaded, and what is in the way."""
    from qeval.plan.preflight import report

    for planned, state in zip(found.chosen, found.states, strict=True):
        key = planned.cell.key[:12] if planned.cell else "-"
        limit = f" [first {planned.task.limit}]" if planned.task.limit else ""
        reason = f" ({short(state.reason, 80)})" if state.reason else ""
        echo(f"{key:12}  {planned.engine or '-':9} {state!s:13} {planned.name}{limit}{reason}")
    kinds = [state.kind for state in found.states]
    say(f"{len(kinds)} cells, {kinds.count('done')} done")
    for download in found.downloads:
        say(f"to download: {download.what}")
    if found.problems:
        for line in report(found.problems):
            say(line)


def _keep_spec(experiment: Experiment, folder: Path) -> None:
    """A copy of the spec beside its results, for whoever reads them later."""
    from qeval.core.files import write_atomic
    from qeval.plan.kept_spec import SPEC_NAME

    write_atomic(folder / SPEC_NAME, experiment.text)


def score_samples(
    samples: Path,
    *,
    benchmark: str | None,
    data_dir: Path | None,
    ks: Sequence[int],
    timeout: float,
    workers: int | None,
    verdicts: Path | None,
    weak: bool,
) -> ScoreReport:
    from qeval.run.display import Bar
    from qeval.tasks.coding.score_file import score_file

    with Bar() as bar:
        return score_file(
            samples,
            k=list(ks),
            name=benchmark,
            data_dir=data_dir,
            timeout_s=timeout,
            weak_sandbox=weak,
            workers=workers,
            verdicts=verdicts,
            progress=bar.update,
        )


def model_statistics(
    models: Sequence[str],
    *,
    fmt: str,
    kinds: Sequence[str],
    sort: str | None,
    top: int | None,
    png: Path | None,
    save: Path | None,
    limit: int,
    dtype: str,
    device: str,
    data_dir: Path | None,
    cache_dir: Path | None,
    trust_remote_code: bool,
    **options: Any,
) -> str:
    """The table of one model or of two. ``options`` are those of the task tensor_stats.

    Raises:
        UsageError: no such device; more than two models; a picture or a file of two; no matplotlib
            for a picture.
    """
    from qeval.cli.statistics import How, statistics
    from qeval.core.extras import require
    from qeval.core.settings import EngineSettings
    from qeval.tensor_stats.layers import lines, render

    try:
        device_name(device)
    except ValueError as err:
        raise UsageError(f"--device {device}: {err}") from err
    if len(models) > 2:
        raise UsageError("qeval stats: give one model, or two to compare")
    if len(models) == 2 and (png or save):
        raise UsageError(f"qeval stats: {'--png' if png else '--save'} is for one model")
    if png:
        require("plot", "matplotlib")
    settings = EngineSettings(device, dtype, trust_remote_code=trust_remote_code)
    how = How(options, limit, settings, data_dir, cache_dir)
    found = [statistics(model, how, save) for model in models]
    if png:
        from qeval.tensor_stats.heat_map import draw

        draw(png, found[0], sort or "sqnr")
        say(f"wrote {png}")
    return render(fmt, found, lines(found, kinds=kinds, sort=sort, top=top), sort)


def list_cells(path: Path) -> str:
    """The cells of a results folder with key and status; of a spec their names alone, since keys need
    the models."""
    if path.is_dir():
        from qeval.report.places import place_of

        records = latest(r for r in read_results([path]) if r.kind == "eval").values()
        where = [f" ({place_of(r).words()})" if "conditions" in r.cell else "" for r in records]
        rows = zip(records, where, strict=True)
        return _columns([(r.key[:12], r.status, cell_name(r.cell) + w) for r, w in rows])
    experiment = load_spec(path)
    return "\n".join(
        f"{model.id} · {q.label} · {task.label}{f' [first {task.limit}]' if task.limit else ''}"
        for model in experiment.models
        for q in experiment.quantizations
        for task in experiment.tasks
    )


def data_table(data_dir: Path | None) -> str:
    from qeval.data.datasets import DataSource
    from qeval.data.manage import list_datasets

    rows = [("name", "found", "licence", "what")]
    for item in list_datasets(DataSource(data_dir)):
        where = str(item.path) if item.path else item.where
        rows.append((item.entry.name, where, item.entry.licence, item.entry.about))
    return _columns(rows)


def fetch_datasets(names: Sequence[str], data_dir: Path) -> Iterator[str]:
    from qeval.data.manage import fetch

    for name in names:
        got = fetch(name, data_dir)
        state = "downloaded" if got.downloaded else "already there"
        n = len(got.corpus.documents)
        yield f"{name}: {state}, {n} documents, {got.path}, sha256 {got.file_sha256}"


def verify_datasets(data_dir: Path | None) -> tuple[str, bool]:
    from qeval.data.datasets import DATA_DIR_VARIABLE, DataSource
    from qeval.data.manage import verify

    folder = DataSource(data_dir).data_dir
    if folder is None:
        raise UsageError(f"qeval data verify: give --data-dir, or set {DATA_DIR_VARIABLE}")
    found = verify(folder)
    rows = [(v.status, v.name, str(v.path), v.file_sha256[:16], v.message) for v in found]
    return _columns(rows) or f"{folder}: no known dataset", all(v.status != "wrong" for v in found)


def cache_table(cache_dir: Path) -> str:
    cache = ArtifactCache(cache_dir)
    entries = cache.entries()
    rows = [("key", "size", "last used", "what")]
    for e in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(e.last_used))
        rows.append((e.key[:12], human_bytes(e.n_bytes), used, one_line(e.name)))
    total = sum(e.n_bytes for e in entries)
    kept = cache.unfinished_bytes()
    also = f"; {len(kept)} unfinished builds, {human_bytes(sum(kept))}" if kept else ""
    return f"{_columns(rows)}\n{len(entries)} models, {human_bytes(total)} in {cache_dir}{also}"


def remove_cached(cache_dir: Path, keys: tuple[str, ...], older: float | None, everything: bool) -> str:
    """Raises UsageError where nothing, more than one way of choosing, or no number of days is given."""
    if sum((bool(keys), older is not None, everything)) != 1:
        raise UsageError("qeval cache remove: give KEYS, or --older-than DAYS, or --all")
    if older is not None and not 0 <= older < math.inf:
        raise UsageError(f"qeval cache remove: --older-than {older:g}: give a number of days from 0 on")
    cache = ArtifactCache(cache_dir)
    if older is not None:
        removed = cache.older_than(older)
    else:
        removed = cache.entries() if everything else cache.named(keys)
    cache.remove(removed)
    freed = sum(e.n_bytes for e in removed)
    if everything or older is not None:
        freed += cache.remove_unfinished(older or 0.0)
    return f"removed {len(removed)} models, {human_bytes(freed)}"


def create_environment(cache_dir: Path, name: str, **options: Any) -> str:
    """Make an environment, saying its steps on stderr; where it is and how it stands."""
    from qeval.envs import build as envs

    started = time.monotonic()

    def step(what: str) -> None:
        say(f"[{name} {time.monotonic() - started:3.0f}s] {what}")

    made = envs.create(name, cache_dir, say=step, **options)
    versions = ", ".join(f"{package} {version}" for package, version in made.versions.items())
    return f"{name} is {made.state}: {made.path} (Python {made.python}, {versions})"


def environment_table(cache_dir: Path) -> str:
    from qeval.envs.build import states

    rows = [("name", "state", "python", "size", "where", "what for")]
    for e in states(cache_dir):
        size = human_bytes(e.n_bytes) if e.n_bytes else "-"
        rows.append((e.name, e.state, e.python or "-", size, str(e.path), e.about))
    return _columns(rows)


def remove_environments(cache_dir: Path, names: Sequence[str]) -> str:
    """Raises UsageError where one is not there or is being built; those before it are removed."""
    from qeval.envs import build as envs

    found = {e.name: e for e in envs.states(cache_dir)}
    for name in names:
        envs.remove(name, cache_dir)
    return f"removed {', '.join(names)}, {human_bytes(sum(found[n].n_bytes for n in names))}"


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, the last one free."""
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    )
