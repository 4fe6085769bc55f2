"""What `qeval list methods|engines|tasks` prints: every name with its options, as a spec has them."""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from qeval.core.execution import KEYS
from qeval.core.options import Options
from qeval.engines.base import ENGINES
from qeval.plan.keys import TaskCommon
from qeval.quant.base import METHODS
from qeval.tasks.base import TASKS

Group = Literal["methods", "engines", "tasks"]
_SIGNS = ((Gt, "gt", ">"), (Ge, "ge", ">="), (Lt, "lt", "<"), (Le, "le", "<="))
_BESIDE = "beside any of them, or among its options (simulated, on hf)"


def catalog(group: Group, name: str | None = None) -> str:
    """One line a name and one an option; of all names, or of one.

    Raises:
        UsageError: no such name; the message suggests the closest one.
    """
    entry, names = _ENTRIES[group]
    chosen = names if name is None else [name]
    return "\n".join([*(line for n in chosen for line in entry(n)), *_beside(group, name)])


def option_schemas(group: Group, name: str | None = None) -> dict[str, object]:
    """By name the JSON Schema of the options."""
    registry: Any = {"methods": METHODS, "engines": ENGINES, "tasks": TASKS}[group]
    names = list(registry) if name is None else [name]
    classes = {n: getattr(registry[n], "Options", Options) for n in names}
    return {n: cls.model_json_schema() for n, cls in classes.items()}


def _method(name: str) -> Iterator[str]:
    yield _head(name, METHODS[name])
    yield from _options(METHODS[name].Options)


def _engine(name: str) -> Iterator[str]:
    yield _head(name, ENGINES[name])
    yield f"    offers {', '.join(sorted(ENGINES[name].capabilities))}"
    yield from _options(getattr(ENGINES[name], "Options", Options))


def _task(name: str) -> Iterator[str]:
    yield _head(name, TASKS[name])
    yield from _options(TASKS[name].Options)
    yield from _options(TaskCommon)


_ENTRIES: dict[Group, tuple[Callable[[str], Iterator[str]], Iterable[str]]] = {
    "methods": (_method, METHODS),
    "engines": (_engine, ENGINES),
    "tasks": (_task, TASKS),
}


def _head(name: str, cls: type[object]) -> str:
    return f"{name}: {_summary(sys.modules[cls.__module__].__doc__)}"


def _beside(group: Group, name: str | None) -> Iterator[str]:
    """``engine``, ``activations`` and ``kv_cache``, which stand beside any method."""
    if group == "methods":
        yield "beside any of them: engine, of `qeval list engines`; a list is a row for each"
        yield f"{_BESIDE}:"
        for key, options in KEYS.items():
            yield f"    {key}: bits, or {kind(options)}, default null"
            yield from ("    " + line for line in _options(options))


def _options(cls: type[Options]) -> Iterator[str]:
    for key, info in cls.model_fields.items():
        names = [key, *(n for n in _aliases(info) if n != key)]
        default = "required" if info.is_required() else f"default {written(_default(info))}"
        if cls is TaskCommon and info.default is None:
            default = "default the spec's"
        limits = _limits(info)
        yield f"    {' or '.join(names)}: {kind(info.annotation)}, {default}" + (
            f", {limits}" if limits else ""
        )


def kind(annotation: Any) -> str:
    """A type as a spec's reader has it: ``int``, ``nf4 | fp4``, ``int or null``, ``{dataset, ...}``."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " | ".join(written(value) for value in parts)
    if origin in (typing.Union, types.UnionType):
        kinds = dict.fromkeys(kind(part) for part in parts)
        return (" | " if any("|" in each for each in kinds) else " or ").join(kinds)
    if origin in (list, tuple):
        return f"list of {kind(parts[0])}"
    if origin is typing.Annotated:
        return kind(parts[0])
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, Options):
        return "{" + ", ".join(annotation.model_fields) + "}"
    return {str: "text", bool: "true | false"}.get(annotation, getattr(annotation, "__name__", "any"))


def written(value: object) -> str:
    """A value as YAML has it on one line."""
    if isinstance(value, Options):
        value = value.model_dump(mode="json")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {written(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(written, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _default(info: FieldInfo) -> object:
    return info.get_default(call_default_factory=True)


def _aliases(info: FieldInfo) -> list[str]:
    choices = getattr(info.validation_alias, "choices", ())
    return [choice for choice in choices if isinstance(choice, str)]


def _limits(info: FieldInfo) -> str:
    """``2 to 8``, ``>= 1``, ``> 0, <= 1``."""
    found = {
        sign: getattr(limit, name)
        for limit in info.metadata
        for cls, name, sign in _SIGNS
        if isinstance(limit, cls)
    }
    if found.keys() == {">=", "<="}:
        return f"{found['>=']} to {found['<=']}"
    return ", ".join(f"{sign} {value}" for sign, value in found.items())


def _summary(doc: str | None) -> str:
    first = (doc or "").strip().split("\n\n")[0].replace("\n", " ").replace("``", "`")
    return first.split(":", 1)[-1].strip() if first.startswith("`") else first
