"""YAML -> Experiment: what was asked, validated to the last key before anything runs.

Unknown keys, wrong types and impossible options are errors that name the file, the line and the key,
with the closest known word. A list given for an option that takes one value is a grid: the entry
becomes one entry for each combination. Relative paths are relative to the current directory, as on
a command line.
"""

from __future__ import annotations

import itertools
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator

from qeval import registry
from qeval.errors import SpecError, UsageError, did_you_mean
from qeval.quant.base import Options
from qeval.quant.running import KEYS, Running

Dtype = Literal["float32", "float16", "bfloat16"]
KeyPath = tuple[str | int, ...]


class ModelEntry(Options):
    """One model: ``- bigcode/starcoder2-15b`` is short for ``- {id: bigcode/starcoder2-15b}``."""

    id: str  # hub id, local folder, or a .gguf file
    revision: str | None = None  # branch, tag or commit on the hub
    dtype: Dtype | None = None  # None: the spec's
    trust_remote_code: bool = False


class Spec(Options):
    """The top level of a spec file. Every key but the first four has a default."""

    name: str
    models: list[Any]
    quantizations: list[Any]
    tasks: list[Any]
    dtype: Dtype = "bfloat16"
    baseline: str | None = None  # label or method of the row that differences are taken from
    defaults: dict[str, dict[str, Any]] = Field(default_factory=dict)
    limit: int | None = Field(default=None, ge=1)  # first units (windows, problems) of every task
    data_dir: str | None = None
    cache_dir: str | None = None
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    batch_size: int | None = Field(default=None, ge=1)
    n_threads: int | None = Field(default=None, ge=1)
    timeout: float | None = Field(default=86400.0, gt=0)  # seconds a job may take; None: no limit

    @field_validator("name")
    @classmethod
    def _name_is_a_folder_name(cls, value: str) -> str:
        if not value or "/" in value or value.startswith("."):
            raise ValueError("must be a plain name: it becomes the folder results/<name>")
        return value

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if value in ("auto", "cpu", "cuda") or (value.startswith("cuda:") and value[5:].isdigit()):
            return value
        raise ValueError("must be auto, cpu, cuda or cuda:N")

    @field_validator("models", "quantizations", "tasks")
    @classmethod
    def _not_empty(cls, value: list[Any]) -> list[Any]:
        if not value:
            raise ValueError("must name at least one")
        return value


@dataclass(frozen=True)
class Quantization:
    method: str
    options: Options
    label: str
    running: Running = field(default_factory=Running)

    def execution(self) -> dict[str, Any]:
        """What changes how the weights run and not what they are: a kernel, activations, KV cache."""
        return {**self.options.execution(), **self.running.execution()}

    def described(self) -> dict[str, Any]:
        """All options of the row, for its record."""
        return {**self.options.model_dump(mode="json"), **self.running.execution()}


@dataclass(frozen=True)
class TaskEntry:
    task: str
    options: Options
    label: str
    limit: int | None
    timeout: float | None


@dataclass(frozen=True)
class Experiment:
    """A validated spec: all grids expanded, all defaults merged, every name known."""

    name: str
    models: tuple[ModelEntry, ...]
    quantizations: tuple[Quantization, ...]
    tasks: tuple[TaskEntry, ...]
    baseline: str | None  # a label of quantizations, or None
    settings: Spec


class _Source:
    """The YAML text with the line of every key, to name it in errors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            text = path.read_text(encoding="utf-8")
            root = yaml.compose(text, Loader=yaml.SafeLoader)
            self.data = yaml.safe_load(text)
        except FileNotFoundError as err:
            raise SpecError(f"{path}: no such file") from err
        except (OSError, UnicodeDecodeError) as err:
            raise SpecError(f"{path}: cannot be read ({err})") from err
        except yaml.YAMLError as err:
            mark = getattr(err, "problem_mark", None)
            where = f"{path}:{mark.line + 1}" if mark else str(path)
            raise SpecError(f"{where}: not valid YAML: {getattr(err, 'problem', err)}") from err
        if not isinstance(self.data, dict):
            raise SpecError(f"{path}: the top level must be a mapping with name, models, ...")
        self._lines: dict[KeyPath, int] = {}
        self._walk(root, ())

    def _walk(self, node: Any, where: KeyPath) -> None:
        self._lines.setdefault(where, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                inner = (*where, key.value)
                if inner in self._lines:
                    raise SpecError(
                        f"{self.path}:{key.start_mark.line + 1}: {key.value!r} stands twice"
                    )
                self._lines[inner] = key.start_mark.line + 1
                self._walk(value, inner)
        elif isinstance(node, yaml.SequenceNode):
            for i, value in enumerate(node.value):
                self._walk(value, (*where, i))

    def error(self, where: KeyPath, message: str) -> SpecError:
        known = where
        while known not in self._lines:
            known = known[:-1]
        key = ".".join(str(part) for part in where if isinstance(part, str))
        return SpecError(f"{self.path}:{self._lines[known]}: {key + ': ' if key else ''}{message}")


def load_spec(path: Path, overrides: dict[str, Any] | None = None) -> Experiment:
    """Read and validate a spec file; ``overrides`` (from the command line) win over its keys, and an
    overriding limit over those of single tasks.

    Raises:
        SpecError: with file, line, key and fix, for the first thing that is wrong.
    """
    source = _Source(path)
    overrides = overrides or {}
    spec: Spec = _validate(source, (), Spec, {**source.data, **overrides})
    models = _models(source, spec)
    for name in spec.defaults:
        if name not in registry.names("methods") and name not in registry.names("tasks"):
            known = [*registry.names("methods"), *registry.names("tasks")]
            raise source.error(("defaults", name), f"no such method or task{did_you_mean(name, known)}")
    quantizations = _distinct_labels(tuple(_quantizations(source, spec)))
    tasks = tuple(_tasks(source, spec))
    if "limit" in overrides:
        tasks = tuple(replace(t, limit=spec.limit) for t in tasks)
    _no_repeats(source, "tasks", [(t.task, t.options, t.limit) for t in tasks])
    _no_repeats(source, "quantizations", [(q.method, q.options, q.running) for q in quantizations])
    baseline = _baseline(source, spec, quantizations)
    return Experiment(spec.name, models, quantizations, tasks, baseline, spec)


def _models(source: _Source, spec: Spec) -> tuple[ModelEntry, ...]:
    entries = []
    for i, raw in enumerate(spec.models):
        if isinstance(raw, str):
            raw = {"id": raw}
        if not isinstance(raw, dict):
            raise source.error(("models", i), "must be a hub id, a folder, or a mapping with `id`")
        entries.append(_validate(source, ("models", i), ModelEntry, raw))
    _no_repeats(source, "models", entries)
    return tuple(entries)


def _quantizations(source: _Source, spec: Spec) -> Iterator[Quantization]:
    for i, raw in enumerate(spec.quantizations):
        beside = {k: raw[k] for k in KEYS if k in raw} if isinstance(raw, dict) else {}
        bare = {k: v for k, v in raw.items() if k not in beside} if beside else raw
        where, name, given = _entry(source, "quantizations", i, bare)
        method = _named(source, where, "methods", name)
        if given is not None and not isinstance(given, dict):
            if method.scalar is None:
                raise source.error(where, f"takes a mapping of options, not {given!r}")
            given = {method.scalar: given}
        if twice := sorted(beside.keys() & (given or {}).keys()):
            raise source.error((*where, twice[0]), "stands beside the method, too: keep one")
        merged = {**spec.defaults.get(name, {}), **(given or {}), **beside}
        own = {k: v for k, v in merged.items() if k not in KEYS}
        ways = [
            Running(*pair)
            for pair in itertools.product(
                *(_ways(source, where[: 2 if k in beside else 3], k, merged.get(k)) for k in KEYS)
            )
        ]
        for options in _expand(source, where, method.Options, own):
            for running in ways:
                yield Quantization(name, options, running.label(method.label(options)), running)


def _ways(source: _Source, where: KeyPath, key: str, given: Any) -> list[Any]:
    """One set of options for each combination of lists in ``activations`` or ``kv_cache``, of which a
    number is short for ``num_bits``, and a list is of numbers or mappings; None: not quantized, as with
    16 bits."""
    if given is None:
        return [None]
    items = given if isinstance(given, list) and given else [given]
    mappings = [item if isinstance(item, dict) else {"num_bits": item} for item in items]
    found: list[Any] = [o for m in mappings for o in _expand(source, (*where, key), KEYS[key], m)]
    return [None if options.num_bits == 16 else options for options in found]


def _tasks(source: _Source, spec: Spec) -> Iterator[TaskEntry]:
    for i, raw in enumerate(spec.tasks):
        where, name, given = _entry(source, "tasks", i, raw)
        task = _named(source, where, "tasks", name)
        if given is not None and not isinstance(given, dict):
            raise source.error(where, f"takes a mapping of options, not {given!r}")
        merged = {**spec.defaults.get(name, {}), **(given or {})}
        common = _validate(source, where, _TaskCommon, {k: merged[k] for k in _COMMON & merged.keys()})
        own = {k: v for k, v in merged.items() if k not in _COMMON}
        for options in _expand(source, where, task.Options, own):
            limit = common.limit or spec.limit
            yield TaskEntry(name, options, task.label(options), limit, common.timeout or spec.timeout)


class _TaskCommon(Options):
    """Keys that every task takes beside its own options."""

    limit: int | None = Field(default=None, ge=1)
    timeout: float | None = Field(default=None, gt=0)


_COMMON = frozenset(_TaskCommon.model_fields)


def _entry(source: _Source, section: str, i: int, raw: Any) -> tuple[KeyPath, str, Any]:
    """``none`` or ``{rtn: {...}}`` -> where it stands, its name, its options (None: none given)."""
    if isinstance(raw, str):
        return (section, i), raw, None
    if isinstance(raw, dict) and len(raw) == 1:
        name = next(iter(raw))
        return (section, i, name), str(name), raw[name]
    beside = f"; beside it {' and '.join(KEYS)}" if section == "quantizations" else ""
    raise source.error((section, i), f"each entry is a name, or one name with its options{beside}")


def _named(source: _Source, where: KeyPath, group: registry.Group, name: str) -> Any:
    try:
        return registry.lookup(group, name)()
    except UsageError as err:
        raise source.error(where[:2], str(err)) from err


def _expand(
    source: _Source, where: KeyPath, cls: type[Options], given: dict[str, Any]
) -> Iterator[Options]:
    """One Options for each combination of the lists given to options that take one value."""
    axes = {}
    for key, value in given.items():
        grid = isinstance(value, list) and not _takes_list(cls, key)
        if grid and not value:
            raise source.error((*where, key), "is an empty list")
        axes[key] = value if grid else [value]
    for combination in itertools.product(*axes.values()):
        yield _validate(source, where, cls, dict(zip(axes, combination, strict=True)))


def _takes_list(cls: type[Options], key: str) -> bool:
    field = cls.model_fields.get(key)
    if field is None:
        return False
    annotation = field.annotation
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    members = typing.get_args(annotation) if union else (annotation,)
    return any(typing.get_origin(m) in (list, tuple) for m in members)


def _validate(source: _Source, where: KeyPath, cls: type[Any], data: Any) -> Any:
    try:
        return cls.model_validate(data)
    except ValidationError as err:
        first = err.errors()[0]
        inner = tuple(p for p in first["loc"] if isinstance(p, int) or p in _keys(data))
        path = (*where, *(inner or first["loc"][:1]))
        if first["type"] == "extra_forbidden":
            word = str(first["loc"][-1])
            known = [*cls.model_fields, *_beside(where)]
            raise source.error(path, f"unknown key{did_you_mean(word, known)}") from err
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "missing":
            raise source.error(where, f"the key {first['loc'][-1]!r} is missing") from err
        shown = "" if first["type"] == "value_error" else f" (got {first['input']!r})"
        raise source.error(path, message[0].lower() + message[1:] + shown) from err


def _beside(where: KeyPath) -> Iterable[str]:
    """The keys that every entry of a section takes beside its own options."""
    if len(where) != 3:
        return ()
    return {"tasks": _COMMON, "quantizations": KEYS}.get(str(where[0]), ())


def _keys(data: Any) -> set[str]:
    """All keys anywhere inside, so that pydantic's own markers in an error's path can be left out."""
    if isinstance(data, dict):
        return set(data).union(*(_keys(v) for v in data.values()))
    return set().union(*(_keys(v) for v in data)) if isinstance(data, list) else set()


def _no_repeats(source: _Source, section: str, items: list[Any]) -> None:
    for i, item in enumerate(items):
        if item in items[:i]:
            first = items.index(item) + 1
            raise source.error((section,), f"entry {i + 1} repeats entry {first} (after grids)")


def _distinct_labels(entries: tuple[Quantization, ...]) -> tuple[Quantization, ...]:
    """Labels as the methods give them; where two rows share one, the options that differ are added."""
    out = []
    for q in entries:
        twins = [_flat(t) for t in entries if t.label == q.label and t.method == q.method]
        extra = [
            f"{key}={value}"
            for key, value in _flat(q).items()
            if any(t.get(key) != value for t in twins)
        ]
        out.append(replace(q, label=f"{q.label} ({', '.join(extra)})" if extra else q.label))
    return tuple(out)


def _flat(q: Quantization) -> dict[str, Any]:
    """All options of a row, those of ``activations`` and ``kv_cache`` one by one."""
    running = q.running.execution().items()
    inner = {f"{name}.{key}": value for name, given in running for key, value in given.items()}
    return {**q.options.model_dump(), **inner}


def _baseline(source: _Source, spec: Spec, entries: tuple[Quantization, ...]) -> str | None:
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
