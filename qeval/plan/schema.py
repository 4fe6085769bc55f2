"""The JSON Schema of a spec, out of the models that parse it.

What it cannot say (that k is at most n_samples, that a text is known) a dry run does. Methods and
tasks of other packages are in it where these are installed.
"""

from __future__ import annotations

from typing import Any

from pydantic import AliasChoices

from qeval.core.execution import KEYS
from qeval.core.options import Options
from qeval.engines.base import ENGINES
from qeval.plan.keys import ModelEntry, Spec, TaskCommon
from qeval.plan.validate import takes_list
from qeval.quant.base import METHODS
from qeval.tasks.base import TASKS

Schema = dict[str, Any]
_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def spec_schema() -> Schema:
    """Of the whole file."""
    made = _Maker()
    top = made.of(Spec, grid=False)
    keys = top["properties"]
    keys["models"] = _some(made.model())
    keys["quantizations"] = _some({"anyOf": [*made.quantizations()]})
    keys["tasks"] = _some({"anyOf": [*made.tasks()]})
    keys["engine"] = made.engine()
    keys["defaults"] = made.defaults()
    return {"$schema": _DRAFT, "title": "A spec of qeval", **top, "$defs": made.definitions}


class _Maker:
    """Collects the definitions that the parts share."""

    def __init__(self) -> None:
        self.definitions: Schema = {}

    def of(self, cls: type[Options], *, grid: bool = True) -> Schema:
        """Of options; with ``grid`` every one also takes a list of its values."""
        found = cls.model_json_schema(ref_template="#/$defs/{model}")
        self.definitions |= found.pop("$defs", {})
        found.pop("title", None)
        keys: Schema = found.setdefault("properties", {})
        for name in list(keys):
            if grid and not takes_list(cls, name):
                keys[name] = _or_list(keys[name])
        for name, info in cls.model_fields.items():
            if isinstance(info.validation_alias, AliasChoices):
                names = [name, *map(str, info.validation_alias.choices)]
                shown: Schema = next((keys[n] for n in names if n in keys), {})
                keys |= dict.fromkeys(names, shown)
                found["required"] = [n for n in found.get("required", []) if n not in names]
        return found

    def model(self) -> Schema:
        entry = self.of(ModelEntry, grid=False)
        entry["required"] = []  # of an endpoint the id is a name that it has already
        return {"anyOf": [{"type": "string"}, entry]}

    def quantizations(self) -> list[Schema]:
        entries: list[Schema] = [{"enum": list(METHODS)}]
        for name in METHODS:
            options = self.of(METHODS[name].Options)
            options["properties"] |= self._beside()
            values: list[Schema] = [options, {"type": "null"}]
            scalar = METHODS[name].scalar
            if scalar is not None:
                values.append(_or_list(options["properties"][scalar]))
            entries.append(_entry(name, {"anyOf": values}, self._beside()))
        return entries

    def tasks(self) -> list[Schema]:
        entries: list[Schema] = [{"enum": list(TASKS)}]
        common = self.of(TaskCommon, grid=False)["properties"]
        for name in TASKS:
            options = self.of(TASKS[name].Options)
            options["properties"] |= common
            entries.append(_entry(name, {"anyOf": [options, {"type": "null"}]}, {}))
        return entries

    def engine(self) -> Schema:
        one: list[Schema] = [{"enum": list(ENGINES)}, {"type": "null"}]
        for name in ENGINES:
            options = self.of(getattr(ENGINES[name], "Options", Options))
            one.append(_entry(name, {"anyOf": [options, {"type": "null"}]}, {}))
        return _or_list({"anyOf": one})

    def defaults(self) -> Schema:
        """By method or task; values are checked where they are used."""
        found: Schema = {}
        for registry in (METHODS, TASKS):
            for name in registry:
                options = self.of(registry[name].Options)
                options["properties"] |= self._beside() if registry is METHODS else {}
                if registry is TASKS:
                    options["properties"] |= self.of(TaskCommon, grid=False)["properties"]
                found[name] = {**options, "required": []}
        return {"type": "object", "properties": found, "additionalProperties": False}

    def _beside(self) -> Schema:
        found: Schema = {"engine": self.engine()}
        for name, cls in KEYS.items():
            options = self.of(cls)
            scalar = "kind" if name == "floor" else "num_bits"
            values = [options, options["properties"][scalar], {"type": "null"}]
            found[name] = _or_list({"anyOf": values})
        return found


def _entry(name: str, value: Schema, beside: Schema) -> Schema:
    """``{NAME: VALUE}``, with keys beside it."""
    return {
        "type": "object",
        "properties": {name: value, **beside},
        "required": [name],
        "additionalProperties": False,
    }


def _some(item: Schema) -> Schema:
    return {"type": "array", "items": item, "minItems": 1}


def _or_list(value: Schema) -> Schema:
    return {"anyOf": [value, {"type": "array", "items": value, "minItems": 1}]}
