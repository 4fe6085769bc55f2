"""Everything that one record holds, for ``qeval show``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qeval.core.console import aligned
from qeval.core.errors import UsageError, did_you_mean
from qeval.core.record import MemoryReport, Metric, Record
from qeval.core.units import human_bytes, human_seconds
from qeval.report.places import place_of
from qeval.report.row_records import age, kept
from qeval.stats.intervals import half_width
from qeval.store.results import cell_name, is_meant

_NOT_ASKED = ("conditions", "key_anywhere", "planned")  # of a cell: shown in words, or of others


def pick(records: Iterable[Record], prefix: str) -> list[Record]:
    """The records of the one cell whose key starts with ``prefix``, newest first: one a results folder
    that measured it.

    Raises:
        UsageError: no key does, or several do.
    """
    found: dict[str, list[Record]] = {}
    for record in kept(records):
        if record.key.startswith(prefix):
            found.setdefault(record.key, []).append(record)
    if not found:
        raise UsageError(
            f"no cell's key starts with {prefix!r}: `qeval list cells RESULTS` shows the keys"
        )
    if len(found) > 1:
        keys = ", ".join([key[:12] for key in found][:4]) + (", ..." if len(found) > 4 else "")
        raise UsageError(f"{len(found)} cells' keys start with {prefix!r} ({keys}): give more of it")
    return sorted(*found.values(), key=age, reverse=True)


def picked(records: Iterable[Record], named: str) -> list[list[Record]]:
    """The cells that a name means, each as ``pick`` gives it: those whose key begins with it, else
    those of a row of this label or method, else those with it in their names.

    Raises:
        UsageError: there is none; with the rows that are close.
    """
    found: dict[str, list[Record]] = {}
    for record in kept(records):
        found.setdefault(record.key, []).append(record)
    cells = [sorted(group, key=age, reverse=True) for group in found.values()]

    def row(record: Record) -> dict[str, Any]:
        return record.cell.get("quantization") or {}

    by_key = [c for c in cells if c[0].key.startswith(named)]
    by_row = [c for c in cells if named.lower() in names_of(row(c[0]))]
    in_name = [c for c in cells if is_meant([named], cell_name(c[0].cell))]
    evals = [[c for c in chosen if c[0].kind == "eval"] for chosen in (by_row, in_name)]
    chosen = by_key or evals[0] or evals[1]
    if not chosen:
        rows = {str(row(c[0]).get("label")) for c in cells if c[0].kind == "eval"}
        raise UsageError(
            f"no cell's key starts with {named!r}, and no row is called so{did_you_mean(named, rows)}; "
            "`qeval list cells RESULTS` shows keys and names"
        )
    return chosen


def names_of(quantization: Mapping[str, object]) -> set[str]:
    """A row's label and method, in lower case."""
    return {str(quantization.get(part)).lower() for part in ("label", "name")}


def describe(record: Record, *older: Record) -> str:
    """All facts of a record in readable lines; ends in a newline. ``older``: the same cell as other
    folders have it."""
    sections = [
        ("", _asked(record)),
        ("metrics", [_metric(m) for m in record.metrics]),
        ("memory", list(_memory(record.memory)) if record.memory else []),
        ("artifact", _pairs(_artifact(record.artifact or {}))),
        ("notes", list(record.notes)),
        ("conditions", _conditions(record)),
        ("in other folders", [_elsewhere(other) for other in older]),
        ("timing", _pairs({k: _time(k, v) for k, v in record.timing.items()})),
        ("files", _pairs({k: str(Path(record.folder) / v) for k, v in record.files.items()})),
        ("provenance", _pairs(record.provenance)),
    ]
    lines = []
    for title, body in sections:
        if title and body:
            lines += ["", title]
        lines += [f"  {line}" if title else line for line in body]
    return "\n".join(lines) + "\n"


def _conditions(record: Record) -> list[str]:
    if record.conditions is None:
        return ["unknown"] if record.metrics else []
    return _pairs(asdict(record.conditions))


def _elsewhere(record: Record) -> str:
    end = record.timing.get("end")
    when = f" ({_time('end', end)})" if end else ""
    numbers = ", ".join(_metric(m) for m in record.metrics) or record.status
    return f"{record.folder}{when}: {numbers}"


def _asked(record: Record) -> list[str]:
    facts: dict[str, object] = {"key": record.key, "kind": record.kind, "status": record.status}
    facts |= {"error": record.error} if record.error else {}
    facts |= {"log": str(Path(record.folder) / record.log)} if record.log else {}
    asked = {name: value for name, value in record.cell.items() if name not in _NOT_ASKED}
    facts |= {name: _short(value) for name, value in asked.items()}
    facts |= {"to run on": place_of(record).words()} if "conditions" in record.cell else {}
    return _pairs(facts)


def _artifact(made: dict[str, Any]) -> dict[str, object]:
    """A packed format first and in words; its other facts stay in the details."""
    found = (made.get("details") or {}).get("format")
    if not found:
        return made
    bits, group = found.get("num_bits"), found.get("group_size")
    facts = [f"{bits:g} bits" if bits else "bits differ between layers"]
    facts += [f"groups of {group}" if group > 0 else "one scale a channel"] if group else []
    return {"format": f"{found['label']} ({', '.join(facts)})", **made}


def _short(value: object) -> object:
    """``RTN W4 (rtn, num_bits=4)`` and the like for the parts of a cell."""
    if not isinstance(value, dict):
        return value
    options = value.get("options")
    named = ", ".join(f"{k}={v}" for k, v in options.items()) if isinstance(options, dict) else ""
    rest = [str(v) for k, v in value.items() if k not in ("label", "id", "options") and v is not None]
    head = value.get("label") or value.get("id")
    inner = ", ".join([*rest, *([named] if named else [])])
    return f"{head} ({inner})" if head and inner else head or inner


def _pairs(facts: Mapping[str, object]) -> list[str]:
    shown = {k: v for k, v in facts.items() if v not in (None, "", (), [], {})}
    return aligned([(k, _inline(v)) for k, v in shown.items()])


def _inline(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
    return text.replace("\n", "\n    ")


def _metric(metric: Metric) -> str:
    value = "not finite" if metric.value is None else f"{metric.value:.6g}"
    half = half_width(metric) if metric.low is None and metric.value is not None else None
    interval = "" if half is None else f" ± {half:.3g} (95%)"
    parts = [f"{metric.name} = {value}{interval}{' ' + metric.unit if metric.unit else ''}"]
    if metric.stderr is not None:
        parts.append(f"standard error {metric.stderr:.3g}")
    if metric.low is not None and metric.high is not None:
        parts.append(f"interval [{metric.low:.6g}, {metric.high:.6g}]")
    parts += [f"n = {metric.n}", metric.protocol]
    if metric.nonfinite:
        parts.append(f"{100 * metric.nonfinite:.3g}% not finite")
    return ", ".join(parts)


def _memory(memory: MemoryReport) -> Iterator[str]:
    for f in fields(memory):
        value = getattr(memory, f.name)
        if value is not None and f.name != "rank":
            shown = f"{value:,} tokens" if f.name == "context" else human_bytes(value)
            yield f"{f.name.ljust(14)}  {shown}"


def _time(name: str, value: float | None) -> str:
    """Durations as people read them; ``start`` and ``end`` are points in time (UTC)."""
    if value is None:
        return "unknown"
    if name in ("start", "end"):
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return human_seconds(value)
