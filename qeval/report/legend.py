"""The lines under a table that say how to read it; only those that it needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median

from qeval.report.compare import MARGINS, Margins
from qeval.report.format import difference_text, is_factor
from qeval.report.places import UNKNOWN
from qeval.report.table import Column, Entry, Table
from qeval.tasks.layouts import LAYOUTS


@dataclass(frozen=True)
class TableFacts:
    """What the lines say that is not in the table. ``baselines``: names of the rows that differences
    are taken from; ``tasks``: whose processes the peaks were measured in, with the models that have
    theirs from them; ``contexts``: the sequence lengths that KV cache sizes are for."""

    baselines: tuple[str, ...]
    tasks: Mapping[str, tuple[str, ...]]
    contexts: set[int]
    margins: Margins = MARGINS


def legend(table: Table, facts: TableFacts) -> tuple[str, ...]:
    return (*_numbers(table, facts), *_marks(table), *_memory(table, facts), *_places(table))


def _numbers(table: Table, facts: TableFacts) -> Iterator[str]:
    entries = [e for row in table.rows for e in row.entries.values()]
    if table.layout != "full":
        yield from _protocols(table)
        return
    if any(e.half is not None for e in entries):
        yield (
            "±: 95% interval by Student's t; of windows as of a correlated series, in blocks as "
            "long as the text needs"
        )
    named = [
        c.group
        for c in table.columns
        if c.kind == "metric" and not c.cost and any(_has_interval(r.entries[c.id]) for r in table.rows)
    ]
    if named:
        yield f"{', '.join(dict.fromkeys(named))} [low, high]: 95% interval"
    yield from _differences(table, entries, " / ".join(facts.baselines), facts.margins)


def _protocols(table: Table) -> Iterator[str]:
    counted = LAYOUTS[table.layout].counted
    for column in table.columns:
        if column.protocol:
            first = f", first {column.limit} {counted} only" if column.limit else ""
            yield f"{column.title}: {column.protocol}{first}"


def _differences(table: Table, entries: list[Entry], names: str, margins: Margins) -> Iterator[str]:
    kinds = {e.difference.kind for e in entries if e.difference}
    if kinds & {"relative", "points", "difference"}:
        yield (
            f"second line: difference from the baseline ({names}), paired unit by unit, with its 95% "
            "interval; pts: percentage points"
        )
    if any(e.difference and is_factor(e.difference) for e in entries):
        yield "× [low, high]: how many times the baseline, where that is ten and more"
    if kinds & {"ratio", "time"}:
        same = ", where that was measured under the same conditions" if _several_places(table) else ""
        yield f"× of {_of_what(table)}: ratio to the baseline ({names}){same}, not tested"
    if any("n.s." in difference_text(e) for e in entries):
        yield (
            "n.s.: not distinguishable from the baseline: the difference may be chance (p >= 0.05, by "
            "Holm's correction for the rows compared)"
        )
    if any(e.difference and e.difference.equivalent for e in entries):
        within = {"relative": f"{100 * margins.relative:g}%", "points": f"{100 * margins.points:g} pts"}
        said = " or ".join(text for kind, text in within.items() if kind in kinds)
        yield f"equiv.: the same as the baseline within {said}, by two one-sided tests at 5%"
    if least := [text for c in table.columns if (text := _detectable(table, c))]:
        yield (
            "a true difference of this size would have been seen in four runs of five (median of the "
            f"rows): {'; '.join(least)}"
        )
    if any(e.at_floor for e in entries):
        yield (
            "at the floor: no larger than what the baseline differs by from itself (the rows called "
            "floor); such rows are not ranked among each other"
        )
    if not names and len(table.rows) > 1:
        yield "no row is a baseline: no differences are shown"


def _detectable(table: Table, column: Column) -> str:
    """``PPL gptq/wikitext2 0.8%``; empty where nothing was tested."""
    changes = [d for row in table.rows if (d := row.entries[column.id].difference)]
    found = [d.detectable for d in changes if d.detectable is not None]
    if not found:
        return ""
    name, value = f"{column.title} {column.protocol}", median(found)
    if not math.isfinite(value):
        return f"{name} none"
    kind = changes[0].kind
    if kind == "difference":
        return f"{name} {value:.2g} {column.unit}".rstrip()
    return f"{name} {100 * value:.2g}{'%' if kind == 'relative' else ' pts'}"


def _of_what(table: Table) -> str:
    """What the ratios are of: ``a speed or time``, ``a time or kurtosis``."""
    found = [
        c.group
        for c in table.columns
        if any(
            (d := row.entries[c.id].difference) and d.kind in ("ratio", "time") for row in table.rows
        )
    ]
    return f"a {' or '.join(dict.fromkeys(found))}"


def _marks(table: Table) -> Iterator[str]:
    entries = [e for row in table.rows for e in row.entries.values()]
    if any(row.simulated for row in table.rows):
        yield (
            "†: simulated, float weights that carry the rounding: bpw and weights are what packed "
            "storage would take; peak memory and speed of a packed model were not measured (–)"
        )
    if any(row.low_bits for row in table.rows):
        kept = "KV cache is what packed storage would take; " if _has(table, "kv_cache") else ""
        yield (
            f"†: A2 to A8, KV2 to KV8: activations, keys and values rounded, and kept as floats; {kept}"
            "peak memory and speed were not measured (–)"
        )
    if any(c.limit for c in table.columns) and table.layout == "full":
        yield "[first N]: only the first N units (windows, problems) were measured"
    if any(e.status == "…" for e in entries):
        yield "…: not run yet"


def _memory(table: Table, facts: TableFacts) -> Iterator[str]:
    names = {c.name for c in table.columns}
    during = f", during the task {_by_model(facts.tasks)}" if facts.tasks else ""
    if "bpw" in names:
        yield "bpw: bits per weight of the quantized linears, scales and every other overhead counted"
    if "size" in names:
        yield "weights: stored size, scales, embeddings and head included"
    if "weights" in names:
        yield "layers: stored size of everything but embeddings and head, scales included"
    if names & {"vram_process", "vram_reserved", "vram_allocated"}:
        yield f"VRAM: peak of the row's own process{during}"
    if "ram_peak" in names:
        yield f"RAM: peak resident set of the row's own process{during}"
    if "kv_cache" in names and facts.contexts:
        sizes = " or ".join(f"{n:,}" for n in sorted(facts.contexts))
        yield f"KV cache: one sequence of {sizes} tokens"
    costs = [c for c in table.columns if c.cost]
    if any(_has_interval(row.entries[c.id]) for c in costs for row in table.rows):
        yield "speed or time [low, high]: lowest and highest of the repeats"


def _by_model(tasks: Mapping[str, tuple[str, ...]]) -> str:
    if len(tasks) == 1:
        return next(iter(tasks))
    return ", ".join(f"{task} ({', '.join(models)})" for task, models in tasks.items())


def _places(table: Table) -> Iterator[str]:
    """Where what depends on it was measured."""
    found = {
        c.place: c.where for c in table.columns if c.place and c.kind != "time" and _filled(table, c.id)
    }
    for place, where in found.items():
        if place == UNKNOWN:
            said = "qeval 0.1.0 kept neither device nor threads nor machine"
            yield f"{where or 'speed, time and peak memory: conditions unknown'} ({said})"
        elif where:
            yield f"{where}: measured on {place.words()}"
        else:
            yield f"speed, time and peak memory: measured on {place.words()}"


def _several_places(table: Table) -> bool:
    return any(c.where for c in table.columns)


def _filled(table: Table, column: str) -> bool:
    return any(row.entries[column].value is not None for row in table.rows)


def _has(table: Table, column: str) -> bool:
    return any(c.name == column for c in table.columns)


def _has_interval(entry: Entry) -> bool:
    return entry.half is None and entry.low is not None
