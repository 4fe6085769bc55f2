"""Options out of plain data of a YAML file: every key that is wrong is an error at its line."""

from __future__ import annotations

import itertools
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeGuard, TypeVar

from pydantic import AliasChoices, ValidationError
from pydantic_core import ErrorDetails

from qeval.core.errors import SpecError, SpecErrors, did_you_mean, raise_spec, short
from qeval.core.options import Options
from qeval.plan.keys import BESIDE
from qeval.plan.yaml_file import KeyPath, YamlFile

OptionsT = TypeVar("OptionsT", bound=Options)
MOST_ENTRIES = 1000  # of a section with its grids expanded


class Wrong:
    """What is wrong in a file, gathered so that all of it can be told at once."""

    def __init__(self) -> None:
        self.errors: list[SpecError] = []

    @property
    def told(self) -> tuple[SpecError, ...]:
        """Each once."""
        return tuple({str(err): err for err in self.errors}.values())

    @contextmanager
    def noted(self) -> Iterator[None]:
        """A SpecError inside ends what is inside, and is kept."""
        try:
            yield
        except SpecErrors as err:
            self.errors += [each for each in err.errors if isinstance(each, SpecError)]
        except SpecError as err:
            self.errors.append(err)


def field_names(options: type[Options]) -> Iterator[str]:
    """The keys that options take, a field's other names among them."""
    for name, info in options.model_fields.items():
        yield name
        if isinstance(info.validation_alias, AliasChoices):
            yield from (str(choice) for choice in info.validation_alias.choices)


def expand(
    source: YamlFile, where: KeyPath, cls: type[OptionsT], given: Mapping[str, object]
) -> Iterator[OptionsT]:
    """One Options for each combination of the lists given to options that take one value."""
    axes: dict[str, list[object]] = {}
    for key, value in given.items():
        axes[key] = value if isinstance(value, list) and not takes_list(cls, key) else [value]
        if not axes[key]:
            raise source.error((*where, key), "is an empty list")
    if (n := math.prod(map(len, axes.values()))) > MOST_ENTRIES:
        raise source.error(where, f"a grid of {n:,} combinations, the most is {MOST_ENTRIES:,}")
    for combination in itertools.product(*axes.values()):
        yield validate(source, where, cls, dict(zip(axes, combination, strict=True)))


def takes_list(cls: type[Options], key: str) -> bool:
    field = cls.model_fields.get(key)
    return field is not None and any(
        typing.get_origin(m) in (list, tuple) for m in members(field.annotation)
    )


def members(annotation: object) -> tuple[object, ...]:
    """The types of a union, or the one that it is."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)


def validate(source: YamlFile, where: KeyPath, cls: type[OptionsT], data: object) -> OptionsT:
    """Raises SpecError for what is wrong; SpecErrors where several keys are."""
    try:
        return cls.model_validate(data)
    except ValidationError as err:
        told: dict[KeyPath, SpecError] = {}
        for each in err.errors():  # of a union every member says what it is not
            path, message = _told(where, cls, data, each)
            missing = (each["loc"][-1],) if each["type"] == "missing" else ()
            told.setdefault((*path, *missing), source.error(path, message))
        try:
            raise_spec(list(told.values()))
        except SpecError as wrong:
            raise wrong from err
        raise


def _told(where: KeyPath, cls: type[Options], data: object, error: ErrorDetails) -> tuple[KeyPath, str]:
    """Where a key is wrong, and what is."""
    keys = _keys(data)
    inner = tuple(p for p in error["loc"] if isinstance(p, int) or p in keys)
    path = (*where, *(inner or error["loc"][:1]))
    if error["type"] == "extra_forbidden":
        word, around = str(error["loc"][-1]), _class_at(cls, error["loc"][:-1])
        known = [*field_names(around), *(_beside(where) if around is cls else ())]
        return path, f"unknown key{did_you_mean(short(word), known)}"
    if error["type"] == "missing":
        return (*where, *inner), f"the key {error['loc'][-1]!r} is missing"
    message = error["msg"].removeprefix("Value error, ")
    shown = "" if error["type"] == "value_error" else f" (got {short(repr(error['input']))})"
    if error["type"] == "string_type" and isinstance(error["input"], int | float):
        shown += ": put it in quotes"
    return path, message[0].lower() + message[1:] + shown


def _class_at(cls: type[Options], loc: Iterable[str | int]) -> type[Options]:
    """The options that hold a place of a validation error: ``cls``, or those inside it."""
    for part in loc:
        info = cls.model_fields.get(str(part))
        inner = [m for m in members(info.annotation) if is_options(m)] if info else []
        cls = inner[0] if inner else cls
    return cls


def is_options(annotation: object) -> TypeGuard[type[Options]]:
    return isinstance(annotation, type) and issubclass(annotation, Options)


def _beside(where: KeyPath) -> Iterable[str]:
    """The keys that every entry of a section takes beside its own options."""
    return BESIDE.get(str(where[0]), ()) if len(where) == 3 else ()


def _keys(data: object) -> set[str]:
    """All keys anywhere inside, so that pydantic's own markers in an error's path can be left out."""
    if isinstance(data, dict):
        return set(data).union(*(_keys(v) for v in data.values()))
    return set().union(*(_keys(v) for v in data)) if isinstance(data, list) else set()
