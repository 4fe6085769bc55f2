"""What differs between two rows besides their numbers: what was asked, with what, and where it ran."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass

from qeval.core.record import Record

_RUN = ("load_before", "load_after", "others")  # of conditions: of the moment, not of the machine
_FACTS = ("qeval", "git_commit", "git_dirty", "python", "cpu", "gpus")  # of provenance


@dataclass(frozen=True)
class Differing:
    """One fact that is not the same. ``a`` and ``b``: all its values on that side, in words; "–" where
    that side has none. ``kind``: "settings", "versions", "hardware" or "data"."""

    kind: str
    what: str
    a: str
    b: str


def differing(ours: Iterable[Record], theirs: Iterable[Record]) -> list[Differing]:
    """The facts of the records that are compared which differ, settings first."""
    a, b = _facts(ours), _facts(theirs)
    names = sorted({*a, *b}, key=lambda fact: (_KINDS.index(fact[0]), fact[1]))
    said = [
        (kind, what, _said(a.get((kind, what))), _said(b.get((kind, what)))) for kind, what in names
    ]
    return [Differing(*one) for one in said if one[2] != one[3]]


_KINDS = ("settings", "versions", "hardware", "data")
_Facts = dict[tuple[str, str], dict[str, None]]


def facts_of(record: Record) -> Iterator[tuple[str, str, str]]:
    """What is known of how a number was measured: kind (as of ``Differing``), what, value in words."""
    for kind, what, value in _of(record):
        if value not in (None, "", {}, []):
            yield kind, what, _text(value)


def _facts(records: Iterable[Record]) -> _Facts:
    found: _Facts = {}
    for record in records:
        for kind, what, value in facts_of(record):
            found.setdefault((kind, what), {})[value] = None
    return found


def _of(record: Record) -> Iterator[tuple[str, str, object]]:
    cell, conditions = record.cell, record.conditions
    model, quantization = cell.get("model") or {}, cell.get("quantization") or {}
    yield "settings", "model", model.get("id")
    yield "settings", "model content", model.get("identity")
    yield "settings", "dtype", model.get("dtype")
    yield "settings", "method", quantization.get("name")
    yield from _options("", quantization.get("options"))
    engine, task = cell.get("engine") or {}, cell.get("task") or {}
    yield "settings", "engine", engine.get("name")
    yield from _options("engine ", engine.get("options"))
    name = str(task.get("label") or task.get("name"))
    yield "versions", f"version of the task {name}", task.get("version")
    yield "settings", f"limit of {name}", cell.get("limit")
    yield from _options(f"{name} ", task.get("options"))
    if conditions:
        for fact, value in asdict(conditions).items():
            kind = "versions" if fact == "engine_version" else "hardware"
            kind = "settings" if fact in ("batch_size", "n_threads") else kind
            if fact not in _RUN:
                yield kind, fact.replace("_", " "), value
    yield from _provenance(record)


def _provenance(record: Record) -> Iterator[tuple[str, str, object]]:
    found, made = record.provenance, record.artifact or {}
    for fact in _FACTS:
        kind = "hardware" if fact in ("cpu", "gpus") else "versions"
        yield kind, {"qeval": "qeval", "gpus": "GPUs", "cpu": "CPU"}.get(fact, fact), found.get(fact)
    packages = found.get("packages")
    for name, version in packages.items() if isinstance(packages, dict) else ():
        yield "versions", str(name), version
    for fact in ("text_sha256", "tokens_sha256", "tokenizer_sha256", "prompts_sha256"):
        task = (record.cell.get("task") or {}).get("label")
        yield "data", f"{fact.removesuffix('_sha256')} of {task}", found.get(fact)
    details = made.get("details") or {}
    yield "settings", "made by", details.get("library")
    yield "settings", "calibration", details.get("calibration")
    outside = found.get("outside")
    for name, value in outside.items() if isinstance(outside, dict) else ():
        yield "settings", f"there: {name}", value


def _options(prefix: str, options: object) -> Iterator[tuple[str, str, object]]:
    if isinstance(options, Mapping):
        for name, value in options.items():
            yield "settings", f"{prefix}{name}", value


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)


def _said(values: Mapping[str, None] | None) -> str:
    return "–" if not values else " and ".join(sorted(values))
