"""``qeval.run``: a spec done, and what it measured."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qeval.api.results import Results
from qeval.api.settings import spec_settings
from qeval.core.console import say, warn
from qeval.core.errors import SpecError, raise_spec, reason

if TYPE_CHECKING:
    from qeval.core.settings import RunSettings
    from qeval.jobs.display import Told
    from qeval.plan.spec import Experiment

    Folder = str | os.PathLike[str]


def run(
    spec: Folder | Mapping[str, object],
    results: Folder | None = None,
    *,
    only: Sequence[str] = (),
    limit: int | None = None,
    data_dir: Folder | None = None,
    cache_dir: Folder | None = None,
    device: str | None = None,
    allow_weak_sandbox: bool = False,
    debug: bool = False,
) -> Results:
    """Quantize and evaluate everything that a spec names, as ``qeval run`` does: each job in a process
    of its own, and only what has no result yet.

    Args:
        spec: a YAML file, or its content as a mapping.
        results: the folder to keep results in; None: ``results/NAME``.
        only: cells with one of these in their name, method or task.
        limit: first windows or problems of every task.
        data_dir, cache_dir, device: instead of the spec's.
        allow_weak_sandbox: run generated code with resource limits only.
        debug: print the tracebacks of workers that fail.

    Returns:
        The results of the spec's cells. A cell that failed is among them (``Results.failed``).

    Raises:
        SpecError: the spec is wrong; names line and key.
        PreflightError: something is in the way; a line each.
        StoreError: another run uses the folder, or it cannot be written.
    """
    over = {"limit": limit, "device": device}
    experiment = _experiment(spec, {k: v for k, v in over.items() if v is not None})
    settings = spec_settings(
        experiment.settings,
        None if data_dir is None else Path(data_dir),
        None if cache_dir is None else Path(cache_dir),
        allow_weak_sandbox,
    )
    folder = Path("results") / experiment.name if results is None else Path(results)
    return measure(experiment, settings, folder, only=only, debug=debug)


def measure(
    experiment: Experiment,
    settings: RunSettings,
    folder: Path,
    *,
    only: Sequence[str] = (),
    force: bool = False,
    told: Told = "usual",
    debug: bool = False,
) -> Results:
    """Do what has no ok record in ``folder`` yet; the results of the spec's cells.

    Args:
        force: measure all of the chosen cells again; what they left before is put aside.
        told: how much is said of it on standard error.

    Raises:
        PreflightError: something is in the way.
        StoreError: another run uses the folder, or it cannot be written.
    """
    from qeval.jobs.display import Progress
    from qeval.jobs.executor import LocalExecutor
    from qeval.jobs.runner import Runner
    from qeval.plan.kept_spec import keep
    from qeval.plan.survey import ready
    from qeval.store.records import Store
    from qeval.store.results import put_aside

    store = Store(folder)
    found = ready(experiment, settings, {} if force else store.latest(), only=only)
    with store.lock():
        keep(experiment, store.folder)
        steps = found.to_do({} if force else store.latest())
        if force:
            put_aside(store.folder, [step.cell.key for step in steps])
        n = len(found.steps)
        if told != "failures":
            say(f"{n - len(steps)} of {n} cells are done in {store.folder}")
        with (
            Progress(len(steps), store.folder if debug else None, told) as progress,
            LocalExecutor(store.folder.resolve() / "jobs") as executor,
        ):
            Runner(store, executor, settings, progress).run(steps)
        records = found.records(store.read())
        warn(store.warnings)
    return Results(tuple(records), (store.folder,), frozenset(cell.key for cell in found.cells))


def _experiment(spec: Folder | Mapping[str, object], over: dict[str, object]) -> Experiment:
    from qeval.plan.spec import load_spec, parse_spec
    from qeval.plan.yaml_file import YamlFile

    if not isinstance(spec, Mapping):
        return load_spec(Path(spec), over)
    import yaml

    try:
        text = yaml.safe_dump(_plain(spec), sort_keys=False, allow_unicode=True)
    except yaml.YAMLError as err:
        raise SpecError(f"the spec: {reason(err)}: give text, numbers, lists and mappings") from err
    found = parse_spec(YamlFile(Path("the spec"), text=text), over)
    raise_spec(found.errors)
    assert found.experiment is not None
    return found.experiment


def _plain(value: object) -> object:
    """With text in place of paths, and dicts and lists in place of what is like them."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
