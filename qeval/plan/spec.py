"""YAML -> Experiment: what was asked, validated to the last key before anything runs.

Unknown keys, wrong types and impossible options are errors that name the file, the line and the key,
with the closest known word. A list given for an option that takes one value is a grid: the entry
becomes one entry for each combination. Relative paths are relative to the current directory, as on
a command line.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import ValidationError

from qeval.core.endpoint import Endpoint
from qeval.core.errors import MissingExtraError, SpecError, UsageError, did_you_mean, raise_spec, short
from qeval.core.execution import (
    KEYS,
    ActivationOptions,
    Execution,
    FloorKind,
    FloorOptions,
    KvCacheOptions,
    Running,
)
from qeval.core.options import Options
from qeval.core.registry import Registry
from qeval.engines.base import ENGINES
from qeval.plan.keys import BESIDE, BESIDE_METHODS, COMMON, SECTIONS, ModelEntry, Spec, TaskCommon
from qeval.plan.validate import MOST_ENTRIES, Wrong, expand, field_names, validate
from qeval.plan.yaml_file import KeyPath, YamlFile
from qeval.quant.base import METHODS
from qeval.store.results import task_title
from qeval.tasks.base import TASKS, against_baseline, takes_limit

T = TypeVar("T")
BesideT = TypeVar("BesideT", ActivationOptions, KvCacheOptions, FloorOptions)
_MOST_CELLS = 100_000


@dataclass(frozen=True)
class EngineChoice:
    """The engine that a row asks for in place of its weights' own."""

    name: str
    options: Options

    @property
    def is_foreign(self) -> bool:
        """Whether it runs weights that are made for other engines."""
        return bool(ENGINES[self.name].runs)

    @property
    def given(self) -> dict[str, object]:
        """Its options, but for those left at their defaults."""
        return self.options.model_dump(mode="json", exclude_defaults=True)


@dataclass(frozen=True)
class Quantization:
    method: str
    options: Options
    label: str
    running: Running = field(default_factory=Running)
    engine: EngineChoice | None = None  # None: that of its weights
    floor: FloorKind | None = None  # what it shows of the baseline: rows that tasks add, or such a row
    twin: bool = False  # the baseline's weights in another engine: what that engine alone does
    only: frozenset[str] = frozenset()  # the tasks that added it; none: all run on it

    @property
    def execution(self) -> Execution:
        """What changes how the weights run and not what they are: a kernel, activations, KV cache."""
        own = Execution.from_json(self.options.execution())
        engine = self.engine.given if self.engine else {}
        return replace(own, running=self.running, engine=engine)

    def is_for(self, task: str) -> bool:
        return not self.only or task in self.only

    def described(self) -> dict[str, object]:
        """All options of the row, for its record."""
        engine = {"engine": {self.engine.name: self.engine.given}} if self.engine else {}
        return {**self.options.model_dump(mode="json"), **engine, **self.running.to_json()}


@dataclass(frozen=True)
class TaskEntry:
    task: str
    options: Options
    label: str
    limit: int | None
    timeout: float | None

    @property
    def title(self) -> str:
        return task_title(self.label, self.limit)


@dataclass(frozen=True)
class Experiment:
    """A validated spec: all grids expanded, all defaults merged, every name known."""

    name: str
    models: tuple[ModelEntry, ...]
    quantizations: tuple[Quantization, ...]
    tasks: tuple[TaskEntry, ...]
    baseline: str | None  # a label of quantizations, or None
    settings: Spec
    text: str  # of the file, to keep beside the results


class Parsed(NamedTuple):
    """``experiment``: of what is right, where ``errors`` say what is not; None where too little is left
    to ask anything about it."""

    experiment: Experiment | None
    errors: tuple[SpecError, ...]


def load_spec(path: Path, overrides: dict[str, object] | None = None) -> Experiment:
    """Read and validate a spec file; ``overrides`` (from the command line) win over its keys, and an
    overriding limit over those of single tasks.

    Raises:
        SpecError: with file, line, key and fix, for what is wrong.
        UsageError: an override is; with its option.
    """
    found = parse_spec(YamlFile(path), overrides)
    raise_spec(found.errors)
    assert found.experiment is not None
    return found.experiment


def parse_spec(source: YamlFile, overrides: dict[str, object] | None = None) -> Parsed:
    """``load_spec`` that goes on behind an error, for all that are there.

    Raises:
        UsageError: an override is wrong; with its option.
    """
    overrides, wrong = overrides or {}, Wrong()
    _check_options(overrides)
    spec = _top(source, {**source.data, **overrides}, wrong)
    models = _models(source, spec, wrong)
    spec = _with_right_defaults(source, spec, wrong)
    quantizations = _distinct_labels(
        _bounded(source, "quantizations", _quantizations(source, spec, wrong), wrong)
    )
    tasks = _bounded(source, "tasks", _tasks(source, spec, wrong), wrong)
    if "limit" in overrides:
        tasks = tuple(
            replace(t, limit=spec.limit) if takes_limit(TASKS[t.task](), t.options) else t
            for t in tasks
        )
    if wrong.errors:
        return Parsed(_of_what_is_right(spec, models, quantizations, tasks, source), wrong.told)
    with wrong.noted():
        if (n := len(models) * len(quantizations) * len(tasks)) > _MOST_CELLS:
            raise source.error((), f"{n:,} cells, the most is {_MOST_CELLS:,}: split it")
    for section, items in (
        ("tasks", [(t.task, t.options, t.limit) for t in tasks]),
        ("quantizations", [_asked(q) for q in quantizations]),
    ):
        with wrong.noted():
            _no_repeats(source, section, items)
    with wrong.noted():
        _check_endpoints(source, models, quantizations)
    with wrong.noted():
        baseline = _baseline(source, spec, quantizations)
        quantizations = _with_floors(source, quantizations, tasks, baseline, spec.dtype)
    if wrong.errors:
        return Parsed(None, wrong.told)
    return Parsed(Experiment(spec.name, models, quantizations, tasks, baseline, spec, source.text), ())


def _top(source: YamlFile, data: dict[str, object], wrong: Wrong) -> Spec:
    """The top level; of one with errors the keys that are right."""
    with wrong.noted():
        return validate(source, (), Spec, data)
    try:
        Spec.model_validate(data)
    except ValidationError as err:
        bad = {each["loc"][0] for each in err.errors()}
    right = {key: value for key, value in data.items() if key in Spec.model_fields and key not in bad}
    nothing: dict[str, object] = {"name": "-", **{section: [] for section in SECTIONS}}
    return Spec.model_construct(**{**nothing, **right})


def _of_what_is_right(
    spec: Spec,
    models: tuple[ModelEntry, ...],
    quantizations: tuple[Quantization, ...],
    tasks: tuple[TaskEntry, ...],
    source: YamlFile,
) -> Experiment | None:
    """To ask what else is in the way."""
    try:
        baseline = _baseline(source, spec, quantizations)
    except SpecError:  # it may be what is wrong
        baseline = None
    if baseline is None:
        tasks = tuple(t for t in tasks if not against_baseline(TASKS[t.task]()))
    if not (models and quantizations and tasks):
        return None
    return Experiment(spec.name, models, quantizations, tasks, baseline, spec, source.text)


def _check_options(overrides: dict[str, object]) -> None:
    """The values of the command line, by themselves, so that an error names the option."""
    try:
        Spec.model_validate({"name": "-", **{key: ["-"] for key in SECTIONS}, **overrides})
    except ValidationError as err:
        first = err.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(
            f"--{option} {short(str(first['input']))}: {message[0].lower()}{message[1:]}"
        ) from err


def _with_right_defaults(source: YamlFile, spec: Spec, wrong: Wrong) -> Spec:
    """Without the defaults of a method or task that are wrong: no entry is to repeat that."""
    right = {}
    for name, given in spec.defaults.items():
        with wrong.noted():
            _check_defaults(source, name, given)
            right[name] = given
    return spec.model_copy(update={"defaults": right})


def _check_defaults(source: YamlFile, name: str, given: dict[str, object]) -> None:
    """Raises SpecError for a name or a key that is not known, also where no entry uses it. Values are
    checked with the entries that they become part of."""
    where = ("defaults", name)
    if name in METHODS:
        options, section = METHODS[name].Options, "quantizations"
    elif name in TASKS:
        options, section = TASKS[name].Options, "tasks"
    else:
        hint = did_you_mean(short(name), [*METHODS, *TASKS])
        raise source.error(where, f"no such method or task{hint}")
    known = [*field_names(options), *BESIDE[section]]
    for key in given:
        if key not in known:
            raise source.error((*where, key), f"unknown key{did_you_mean(short(key), known)}")


def _models(source: YamlFile, spec: Spec, wrong: Wrong) -> tuple[ModelEntry, ...]:
    entries = []
    for i, raw in enumerate(spec.models):
        with wrong.noted():
            entries.append(_model(source, i, raw))
    found = _bounded(source, "models", entries, wrong)
    with wrong.noted():
        _no_repeats(source, "models", found)
    return found


def _model(source: YamlFile, i: int, raw: object) -> ModelEntry:
    if isinstance(raw, str):
        raw = {"id": raw}
    if not isinstance(raw, dict):
        raise source.error(
            ("models", i), "must be a hub id, a folder, or a mapping with `id` or `endpoint`"
        )
    if "endpoint" in raw:  # by itself, so that an error never shows what else stands there
        endpoint = validate(source, ("models", i, "endpoint"), Endpoint, raw["endpoint"])
        raw = {"id": endpoint.name, **raw, "endpoint": endpoint}
    return validate(source, ("models", i), ModelEntry, raw)


def _check_endpoints(
    source: YamlFile, models: Sequence[ModelEntry], rows: Sequence[Quantization]
) -> None:
    """Raises SpecError for a row that a model behind a server cannot have."""
    asked = next((model for model in models if model.endpoint), None)
    other = next((q for q in rows if q.method != "none" or q.running), None)
    if asked and other:
        raise source.error(
            ("quantizations",),
            f"{asked.id} runs on a server, and has just the row `none`, not {other.label}: give the "
            "endpoint a spec of its own, or name it under quantizations, as a row beside those of a "
            "model that is here",
        )


def _bounded(source: YamlFile, section: str, entries: Iterable[T], wrong: Wrong) -> tuple[T, ...]:
    """The entries of a section; none where there are too many."""
    found = tuple(itertools.islice(entries, MOST_ENTRIES + 1))
    if len(found) > MOST_ENTRIES:
        what = f"over {MOST_ENTRIES:,} entries, each combination of a grid counted: split the spec"
        wrong.errors.append(source.error((section,), what))
        return ()
    return found


def _quantizations(source: YamlFile, spec: Spec, wrong: Wrong) -> Iterator[Quantization]:
    for i, raw in enumerate(spec.quantizations):
        with wrong.noted():
            yield from _rows(source, spec, i, raw)


def _rows(source: YamlFile, spec: Spec, i: int, raw: object) -> Iterator[Quantization]:
    """Of one entry."""
    beside = {k: raw[k] for k in BESIDE_METHODS if k in raw} if isinstance(raw, dict) else {}
    bare = {k: v for k, v in raw.items() if k not in beside} if isinstance(raw, dict) else raw
    where, name, given = _entry(source, "quantizations", i, bare)
    method = _named(source, where, METHODS, name)()
    if given is not None and not isinstance(given, dict):
        if method.scalar is None:
            raise source.error(where, f"takes a mapping of options, not {given!r}")
        given = {method.scalar: given}
    if twice := sorted(beside.keys() & (given or {}).keys()):
        raise source.error((*where, twice[0]), "stands beside the method, too: keep one")
    merged = {**spec.defaults.get(name, {}), **(given or {}), **beside}
    own = {k: v for k, v in merged.items() if k not in BESIDE_METHODS}
    at = {k: (*where[: 2 if k in beside else 3], k) for k in BESIDE_METHODS}
    a, kv, fl = KEYS
    activations = _ways(source, at[a], ActivationOptions, "num_bits", merged.get(a))
    caches = _ways(source, at[kv], KvCacheOptions, "num_bits", merged.get(kv))
    floors = _ways(source, at[fl], FloorOptions, "kind", merged.get(fl))
    if "engine" in merged:
        engines = _engines(source, at["engine"], method.engine, merged["engine"])
    else:
        engines = _fitting(_engines(source, ("engine",), None, spec.engine), method.engine)
    runs = [Running(*way) for way in itertools.product(activations, caches, floors)]
    rows = expand(source, where, method.Options, own)
    for options, engine, running in itertools.product(rows, engines, runs):
        label = running.label(method.label(options))
        if engine and engine.is_foreign:
            label = f"{label} ({engine.name})"
        floor = running.floor.kind if running.floor else None
        yield Quantization(name, options, label, running, engine, floor)


def _engines(
    source: YamlFile, where: KeyPath, own: str | None, given: object
) -> list[EngineChoice | None]:
    """``vllm``, ``{vllm: {tensor_parallel_size: 2}}`` or a list of such; None: that of the weights.
    ``own``: the engine of the method's weights, None where only its files tell it."""
    if given is None:
        return [None]
    found: list[EngineChoice | None] = []
    for item in given if isinstance(given, list) and given else [given]:
        options: object = {}
        if isinstance(item, dict) and len(item) == 1:
            ((item, options),) = item.items()
        if not isinstance(item, str) or not isinstance(options := options or {}, dict):
            raise source.error(where, "takes the name of an engine, or one name with its options")
        engine = _named(source, where, ENGINES, item)
        if own not in (None, item, *engine.runs):
            what = f"{item} does not run weights of {own}: leave `engine` out here"
            raise source.error(where, what)
        found += [
            EngineChoice(item, o) for o in expand(source, (*where, item), engine.Options, options)
        ]
    return found


def _fitting(engines: list[EngineChoice | None], own: str | None) -> list[EngineChoice | None]:
    """Of the engines that the whole spec asks for, those that run a method's weights; else its own."""
    fits = [e for e in engines if e is None or own in (None, e.name, *ENGINES[e.name].runs)]
    return fits or [None]


_FLOAT_GGUF = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def _with_floors(
    source: YamlFile,
    rows: tuple[Quantization, ...],
    tasks: tuple[TaskEntry, ...],
    baseline: str | None,
    dtype: str,
) -> tuple[Quantization, ...]:
    """The rows, and those that show what a difference from the baseline is without any quantization.

    Raises:
        SpecError: a task compares with a baseline that no row is.
    """
    asking = [t for t in tasks if against_baseline(TASKS[t.task]())]
    if not asking:
        return rows
    base = next((q for q in rows if q.label == baseline), None)
    if base is None:
        raise source.error(
            ("tasks",),
            f"{asking[0].task} compares rows with a baseline: add `none` to quantizations, or name one "
            "of them with `baseline:`",
        )
    kinds = dict.fromkeys(kind for t in asking for kind in getattr(t.options, "floors", ()))
    only = frozenset(t.task for t in asking)
    found = list(rows)
    for kind in kinds:
        row = _floor(kind, base, dtype)
        if row is None:
            continue
        same = [i for i, q in enumerate(found) if _asked(q) == _asked(row)]
        if same:  # the spec has it as a row of its own
            found[same[0]] = replace(found[same[0]], floor=kind)
        else:
            found.append(replace(row, floor=kind, only=only))
    return tuple(replace(q, twin=_is_twin(q, base)) for q in found)


def _is_twin(q: Quantization, base: Quantization) -> bool:
    """Whether a row is the baseline's weights in an engine that it asks for."""
    foreign = q.engine is not None and q.engine.is_foreign
    same = (q.method, q.options, q.running) == (base.method, base.options, base.running)
    return foreign and same and q.label != base.label


def _asked(q: Quantization) -> tuple[str, Options, Running, EngineChoice | None]:
    foreign = q.engine is not None and q.engine.is_foreign
    return q.method, q.options, q.running, q.engine if foreign else None


def _floor(kind: FloorKind, base: Quantization, dtype: str) -> Quantization | None:
    """None where what it needs is not installed, or the baseline is such a row itself."""
    if kind != "engine":
        running = replace(base.running, floor=FloorOptions(kind=kind))
        return replace(base, running=running, label=running.label(base.label))
    method = METHODS["gguf"]()
    options = method.Options.model_validate({"type": _FLOAT_GGUF[dtype]})
    try:
        method.check_packages(options)
        ENGINES["llamacpp"].preflight()
    except MissingExtraError:
        return None
    if base.method == "gguf":
        return None
    return Quantization("gguf", options, f"floor: engine ({method.label(options)} GGUF)")


def _ways(
    source: YamlFile, where: KeyPath, cls: type[BesideT], scalar: str, given: object
) -> list[BesideT | None]:
    """One set of options for each combination of lists in ``activations`` or ``kv_cache``, of which a
    number is short for ``num_bits``, and a list is of numbers or mappings; None: not quantized, as with
    16 bits."""
    if given is None:
        return [None]
    items = given if isinstance(given, list) and given else [given]
    mappings = [item if isinstance(item, dict) else {scalar: item} for item in items]
    found = [options for given in mappings for options in expand(source, where, cls, given)]
    return [None if getattr(options, "num_bits", 0) == 16 else options for options in found]


def _tasks(source: YamlFile, spec: Spec, wrong: Wrong) -> Iterator[TaskEntry]:
    for i, raw in enumerate(spec.tasks):
        with wrong.noted():
            yield from _columns(source, spec, i, raw)


def _columns(source: YamlFile, spec: Spec, i: int, raw: object) -> Iterator[TaskEntry]:
    """Of one entry."""
    where, name, given = _entry(source, "tasks", i, raw)
    task = _named(source, where, TASKS, name)()
    if given is not None and not isinstance(given, dict):
        raise source.error(where, f"takes a mapping of options, not {given!r}")
    merged = {**spec.defaults.get(name, {}), **(given or {})}
    common = validate(source, where, TaskCommon, {k: merged[k] for k in COMMON & merged.keys()})
    own = {k: v for k, v in merged.items() if k not in COMMON}
    for options in expand(source, where, task.Options, own):
        limit = (common.limit or spec.limit) if takes_limit(task, options) else None
        yield TaskEntry(name, options, task.label(options), limit, common.timeout or spec.timeout)


def _entry(source: YamlFile, section: str, i: int, raw: object) -> tuple[KeyPath, str, object]:
    """``none`` or ``{rtn: {...}}`` -> where it stands, its name, its options (None: none given)."""
    if isinstance(raw, str):
        return (section, i), raw, None
    if isinstance(raw, dict) and len(raw) == 1:
        name = next(iter(raw))
        return (section, i, name), str(name), raw[name]
    beside = f"; beside it {', '.join(BESIDE_METHODS)}" if section == "quantizations" else ""
    raise source.error((section, i), f"each entry is a name, or one name with its options{beside}")


def _named(source: YamlFile, where: KeyPath, registry: Registry[T], name: str) -> T:
    try:
        return registry[name]
    except UsageError as err:
        raise source.error(where[:2], str(err)) from err


def _no_repeats(source: YamlFile, section: str, items: Sequence[object]) -> None:
    for i, item in enumerate(items):
        first = items.index(item)
        if first < i:
            raise source.error((section,), f"entry {i + 1} repeats entry {first + 1} (after grids)")


def _distinct_labels(entries: tuple[Quantization, ...]) -> tuple[Quantization, ...]:
    """Labels as the methods give them; where two rows share one, the options that differ are added."""
    flat = [_flat(q) for q in entries]
    rows = Counter((q.method, q.label) for q in entries)
    same = Counter(
        (q.method, q.label, key, repr(value))
        for q, options in zip(entries, flat, strict=True)
        for key, value in options.items()
    )
    out = []
    for q, options in zip(entries, flat, strict=True):
        extra = [
            f"{key}={value}"
            for key, value in options.items()
            if same[q.method, q.label, key, repr(value)] < rows[q.method, q.label]
        ]
        out.append(replace(q, label=f"{q.label} ({', '.join(extra)})" if extra else q.label))
    return tuple(out)


def _flat(q: Quantization) -> dict[str, object]:
    """All options of a row, those of ``activations`` and ``kv_cache`` one by one."""
    running = {"activations": q.running.activations, "kv_cache": q.running.kv_cache}
    inner = {
        f"{name}.{key}": value
        for name, options in running.items()
        for key, value in (options.model_dump() if options else {}).items()
    }
    engine = q.engine.options.model_dump() if q.engine else {}
    return {**q.options.model_dump(), **inner, **{f"engine.{k}": v for k, v in engine.items()}}


def _baseline(source: YamlFile, spec: Spec, entries: tuple[Quantization, ...]) -> str | None:
    wanted = spec.baseline or "none"
    plain = [q for q in entries if not q.running]
    for q in (*plain, *(entries if spec.baseline else ())):
        if wanted in (q.label, q.method):
            return q.label
    if spec.baseline is None:
        return None
    names = [name for q in entries for name in (q.label, q.method)]
    raise source.error(
        ("baseline",), f"no quantization is called {wanted!r}{did_you_mean(wanted, names)}"
    )
