"""Which columns a table has: one for each metric, protocol and limit; memory; time; and their choice.

Two protocols never share a column, nor do a whole text and its first N windows, nor, of what a run
costs, two places (places.py). Raw units are kept
here (bytes, shares, seconds); format.py prints GiB and percent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from qeval.core.errors import UsageError, did_you_mean
from qeval.core.record import Metric
from qeval.report.places import Place
from qeval.report.table import Column
from qeval.tasks.layouts import Layout

BPW = Column("bpw", "bpw", "bits", kind="memory")
SIZE = Column("size", "weights", "bytes", kind="memory")
VRAM = Column("vram_process", "VRAM", "bytes", kind="memory")
RAM = Column("ram_peak", "RAM", "bytes", kind="memory")
RESERVED = Column("vram_reserved", "VRAM reserved", "bytes", kind="memory")
ALLOCATED = Column("vram_allocated", "VRAM allocated", "bytes", kind="memory")
WIDE = (
    BPW,
    Column("bpw_file", "bpw file", "bits", kind="memory"),
    Column("weights", "layers", "bytes", kind="memory"),
    Column("embeddings", "embeddings", "bytes", kind="memory"),
    Column("kv_cache", "KV cache", "bytes", kind="memory"),
    ALLOCATED,
    RESERVED,
    VRAM,
    RAM,
)
TIMES = (
    Column("build_s", "quantize", "s", kind="time"),
    Column("build_vram", "quantize VRAM", "bytes", kind="time"),
    Column("build_ram", "quantize RAM", "bytes", kind="time"),
    Column("wall_s", "evaluate", "s", kind="time"),
)


TIME_NAMES = frozenset(c.name for c in TIMES)

CostsByPlace = Mapping[tuple[str, Place | None], float]
"""A row's costs by name and place (costs.py)."""


def metric_column(metric: Metric, limit: int | None) -> Column:
    """``limit`` is the cell's; it is shown only where it cut something off."""
    whole = limit is None or 0 < metric.n < limit or bool(metric.cost)
    return Column(
        metric.name,
        metric.heading or metric.name,
        metric.unit or ("share" if metric.change == "points" else ""),
        metric.protocol,
        None if whole else limit,
        group=metric.group or metric.heading or metric.name,
        better=metric.better or "none",
        from_baseline=metric.from_baseline,
        cost=bool(metric.cost),
    )


def task_column(label: str) -> Column:
    """Stands for a task of which no cell has given a number yet."""
    return Column(label, label, kind="task")


def at(column: Column, place: Place | None, places: Mapping[Place, str]) -> Column:
    """The column of what was measured at ``place``; ``places``: the name of each in this table."""
    return column if place is None else replace(column, place=place, where=places[place])


def memory_columns(
    facts: Sequence[CostsByPlace],
    places: Mapping[Place, str],
    *,
    wide: bool = False,
    every: bool = False,
) -> list[Column]:
    """Columns of the memory that the rows' ``facts`` name. The short form has one column a place for
    what a process needs: VRAM where there was a GPU (the driver's number, else the framework's), else
    RAM; more only where no one of them has a number for all rows. ``every``: those of both forms."""
    known = {key for fact in facts for key in fact}
    short = [c for c in (BPW, SIZE) if (c.name, None) in known]
    short += [at(c, p, places) for p in places for c in _needed(facts, p)]
    long = [at(c, p, places) for c in WIDE for p in (None, *places) if (c.name, p) in known]
    if every:
        return list({c.id: c for c in (*short, *long)}.values())
    return long if wide else short


def time_columns(facts: Sequence[CostsByPlace], hosts: Mapping[Place, str]) -> list[Column]:
    known = {key for fact in facts for key in fact}
    return [at(c, host, hosts) for c in TIMES for host in hosts if (c.name, host) in known]


def _needed(facts: Sequence[CostsByPlace], place: Place) -> list[Column]:
    notions = [c.name for c in (VRAM, RESERVED, ALLOCATED, RAM)]
    rows = [{name for name in notions if (name, place) in fact} for fact in facts]
    found = []
    for column in (VRAM, RESERVED, ALLOCATED, RAM):
        if any(column.name in row for row in rows):
            found.append(column)
            rows = [row for row in rows if column.name not in row]
    return found


def layout_columns(
    layout: Layout,
    quality: Sequence[Column],
    facts: Sequence[CostsByPlace],
    places: Mapping[Place, str],
) -> list[Column]:
    """The layout's metrics (a column each, also where nothing measured it) and the process's memory."""
    own = [c for c in quality if c.protocol.startswith(layout.protocols)]
    chosen: list[Column] = []
    for name in layout.metrics:
        chosen += [c for c in own if c.name == name] or [Column(name, name, layout.unit)]
    peaks = [c for c in memory_columns(facts, places) if c not in (BPW, SIZE)]
    return [*chosen, *peaks]


def select(columns: Sequence[Column], patterns: Sequence[str]) -> list[Column]:
    """The columns that match names or globs (``ppl``, ``ppl*c4*``, ``vram_*``), in that order. A word
    that heads columns means these, and not others that have it as a name.

    Raises:
        UsageError: a pattern matches no column of these records.
    """
    chosen: dict[str, Column] = {}
    for pattern in patterns:
        headed = [c for c in columns if c.title.lower() == pattern.lower()]
        hits = headed or [c for c in columns if _matches(c, pattern)]
        if not hits:
            known = {c.name for c in columns}
            raise UsageError(f"no column {pattern!r} in these results{did_you_mean(pattern, known)}")
        chosen.update({c.id: c for c in hits})
    return list(chosen.values())


def one(columns: Sequence[Column], pattern: str) -> Column:
    """The column that a name or glob means.

    Raises:
        UsageError: it matches none, or several.
    """
    found = select(columns, [pattern])
    exact = [c for c in found if pattern.lower() in (c.id.lower(), c.name.lower())]
    if len(found) > 1 and len(exact) != 1:
        known = ", ".join(repr(c.id) for c in found[:4]) + (", ..." if len(found) > 4 else "")
        raise UsageError(f"{len(found)} columns match {pattern!r} ({known}): give more of one")
    return exact[0] if len(exact) == 1 else found[0]


def _matches(column: Column, pattern: str) -> bool:
    wanted = pattern.lower()
    texts = [text.lower() for text in (column.name, column.id, column.title)]
    return wanted in texts or any(fnmatchcase(text, wanted) for text in texts)  # ids have brackets
