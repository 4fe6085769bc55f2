"""A forecast as text and as json."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from qeval.core.console import aligned
from qeval.core.record import Metric, finite
from qeval.core.units import human_bytes, human_seconds
from qeval.forecast.cost import Disk, Jobs
from qeval.forecast.look import Forecast
from qeval.forecast.power import Column

_LEGEND = (
    "finds: the smallest true difference from the baseline that so many units show (p < 0.05) in four "
    "runs of five; of a divergence, the smallest between two rows. From the row that takes the fewest "
    "units to that which takes the most"
)


def text(found: Forecast) -> str:
    lines = [job for job in found.jobs if job != Jobs("builds")]
    parts = [*_columns(found), "", *_jobs(lines), "", *_disk(found.disk)]
    return "\n".join(parts) + "\n"


def _columns(found: Forecast) -> Iterator[str]:
    if not found.columns:
        yield "no column is tested against the baseline"
        return
    wishes = [w for w in found.wishes if any(w.fits(c.metric) for c in found.columns)]
    sources = list(dict.fromkeys(c.said for c in found.columns))
    for model in dict.fromkeys(c.model for c in found.columns):
        yield from (model, "")
        rows = [["column", "n", "finds", *(f"n for {w.text}" for w in wishes), "by"]]
        for c in (c for c in found.columns if c.model == model):
            n = "unknown" if c.n is None else f"{c.n:,} {c.unit}"
            needs = (_needed(c, c.needs(w)) for w in wishes)
            rows.append([c.title, n, _finds(c), *needs, f"[{sources.index(c.said) + 1}]"])
        yield from _ruled(rows)
        yield ""
    yield from (f"[{i}] {said}" for i, said in enumerate(sources, 1))
    yield _LEGEND
    if any(math.isinf(value) for c in found.columns for _, value in c.finds()):
        yield "none: too few would change sides to prove any difference"
    for w in found.wishes:
        if w not in wishes:
            yield f"--detect {w.text}: no column is in that unit"


def _ruled(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """With a line under the headings."""
    head, *body = aligned(rows)
    yield head
    yield "─" * max(map(len, (head, *body)))
    yield from body


def _finds(column: Column) -> str:
    finds = column.finds()
    if not finds:
        return "unknown"
    return _range([(row, difference(column.metric, value)) for row, value in finds])


def difference(metric: Metric, value: float) -> str:
    """``0.35%``, ``4.9 pts``, ``0.0012 nats``; ``none`` that is found."""
    if not math.isfinite(value):
        return "none"
    if metric.change == "difference":
        return f"{value:.2g} {metric.unit}".rstrip()
    return f"{100 * value:.2g}" + ("%" if metric.change == "relative" else " pts")


def _needed(column: Column, needs: Sequence[tuple[str, int | None]]) -> str:
    """``40 to 1,200``, of the same rows as what is found."""
    if not needs:
        return ""
    least, most = needs[0][1], needs[-1][1]
    said = " to ".join(dict.fromkeys("no n" if n is None else f"{n:,}" for n in (least, most)))
    short = column.whole is not None and (most is None or most > column.whole)
    return said + (f"; there are {column.whole:,}" if short else "")


def _range(found: Sequence[tuple[str, str]]) -> str:
    """``4`` of all rows, or ``4 (Q8_0) to 9 (Q2_K)``."""
    (first, low), (last, high) = found[0], found[-1]
    return low if low == high else f"{low} ({first}) to {high} ({last})"


def _jobs(lines: Sequence[Jobs]) -> Iterator[str]:
    rows = [["cells", "done", "skipped", "refused", "to run", "time"]]
    for job in lines:
        counts = (job.done, job.skipped, job.refused, job.to_run)
        rows.append([job.name, *(str(n) if n else "" for n in counts), _time(job)])
    yield from _ruled(rows)
    yield ""
    yield to_run(lines)


def to_run(lines: Sequence[Jobs]) -> str:
    """``12 jobs to run: about 3 m 20 s for 9 of 12``."""
    total = Jobs(
        "",
        to_run=sum(j.to_run for j in lines),
        known=sum(j.known for j in lines),
        seconds=sum(j.seconds for j in lines),
    )
    if total.to_run and not total.known:
        return f"{total.to_run} jobs to run, time unknown: no earlier run here"
    return f"{total.to_run} jobs to run" + (f": {_time(total)}" if total.to_run else "")


def _time(job: Jobs) -> str:
    if not job.to_run:
        return ""
    if not job.known:
        return "unknown: no earlier run here"
    of = f" for {job.known} of {job.to_run}" if job.known < job.to_run else ""
    return f"about {human_seconds(job.seconds)}{of}"


def disk_line(found: Disk) -> str:
    takes = found.room.what or "nothing"
    size = f", {human_bytes(found.room.n_bytes)} at the least" if found.room.what else ""
    return f"disk: {takes}{size}; {human_bytes(found.free)} are free in {found.folder}"


def _disk(found: Disk) -> Iterator[str]:
    yield disk_line(found)
    for what in found.downloads:
        yield f"to download: {what}"


def json_text(found: Forecast) -> str:
    data = {
        "schema_version": 1,
        "columns": [_column(found, c) for c in found.columns],
        "jobs": [asdict(job) for job in found.jobs],
        "disk": {
            "builds_bytes": sum(found.disk.room.builds.values()),
            "predictions_bytes": sum(found.disk.room.predictions.values()),
            "downloads": found.disk.downloads,
            "folder": str(found.disk.folder),
            "free_bytes": found.disk.free,
        },
    }
    return json.dumps(finite(data), allow_nan=False, ensure_ascii=False, indent=1) + "\n"


def _column(found: Forecast, c: Column) -> dict[str, object]:
    """``finds`` in the terms of a table's json: shares; null where no difference would be found."""
    measured = {s.row: s.n for s in c.sources}
    return {
        "model": c.model,
        "task": c.task.label,
        "metric": c.metric.name,
        "change": c.metric.change,
        "unit": c.metric.unit,
        "counted": c.unit,
        "n": c.n,
        "whole": c.whole,
        "spread": c.said,
        "finds": [{"row": row, "value": v, "measured": measured[row]} for row, v in c.finds()],
        "detect": [
            {"wish": w.text, "value": w.value, "rows": [{"row": r, "n": n} for r, n in c.needs(w)]}
            for w in found.wishes
            if w.fits(c.metric)
        ],
    }
