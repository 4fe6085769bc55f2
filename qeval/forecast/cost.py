"""What is left to do of a spec and what it takes: jobs, time and disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from qeval.core import machine
from qeval.core.record import Record
from qeval.forecast.earlier import KIN, Asked, Earlier, Found, planned_key
from qeval.plan.room import Room
from qeval.plan.survey import Planned, Survey
from qeval.report.places import Place, host_of, place_of
from qeval.report.row_records import age

_TO_RUN = ("download", "build", "cached", "run")


@dataclass(frozen=True)
class Jobs:
    """The cells of a task, or the builds. ``seconds``: of those whose time is ``known``."""

    name: str
    done: int = 0
    skipped: int = 0
    refused: int = 0
    to_run: int = 0
    known: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Disk:
    room: Room
    downloads: tuple[str, ...]
    folder: Path
    free: int


Units = Callable[[Planned], int | None]


def jobs(
    found: Survey,
    earlier: Earlier,
    asked: Callable[[Planned], Asked],
    units: Units,
    place: Callable[[str], Place],
) -> list[Jobs]:
    """A line a task, then one for the builds that are left.

    Args:
        units: that a cell will measure.
        place: where an engine would run.
    """
    lines: dict[str, list[tuple[str, float | None]]] = {}
    for planned, state in found.chosen:
        kind = "to_run" if state.kind in _TO_RUN else state.kind
        seconds = None
        if kind == "to_run" and planned.engine:
            seconds = cell_seconds(
                planned,
                list(earlier.of(planned.task)),
                asked(planned),
                units(planned),
                place(planned.engine),
            )
        lines.setdefault(planned.task.title, []).append((kind, seconds))
    return [*(_counted(name, cells) for name, cells in lines.items()), _builds(found, earlier)]


def cell_seconds(
    planned: Planned, found: Sequence[Found], model: Asked, n: int | None, place: Place
) -> float | None:
    """From earlier cells of the same model and dtype, task and engine at the same place, of the same
    row where there is one, else the median of the others. Only the part that units take grows with
    them."""
    same = [
        f
        for f in found
        if model.kin(f.record) == KIN[0]
        and (f.record.cell.get("model") or {}).get("dtype") == (model.ref.dtype if model.ref else None)
        and (f.record.cell.get("engine") or {}).get("name") == planned.engine
        and place_of(f.record) == place
    ]
    row = [f for f in same if f.key == planned_key(planned.quantization)]
    newest = sorted(row, key=lambda f: age(f.record))[-1:]
    times = [t for f in newest or same if (t := _scaled(f.record, planned.task.limit, n)) is not None]
    return median(times) if times else None


def _scaled(record: Record, limit: int | None, n: int | None) -> float | None:
    wall, run = record.timing.get("wall_s"), record.timing.get("run_s")
    if wall is None:
        return None
    if record.cell.get("limit") == limit:
        return wall
    before = next((m.n for m in record.metrics if m.pairs not in (None, "none") and m.n), None)
    if run is None or before is None or n is None:
        return None
    return wall - run + run * n / before


def _builds(found: Survey, earlier: Earlier) -> Jobs:
    """By their content: a build that was made before, here, and is no more in the cache."""
    here = machine.host()
    again = [r for key in found.room.builds if (r := earlier.builds.get(key))]
    times = [r.timing["wall_s"] for r in again if host_of(r).host == here and "wall_s" in r.timing]
    n = len(found.room.builds)
    return Jobs("builds", to_run=n, known=len(times), seconds=sum(times))


def _counted(name: str, cells: Sequence[tuple[str, float | None]]) -> Jobs:
    kinds = [kind for kind, _ in cells]
    times = [s for _, s in cells if s is not None]
    return Jobs(
        name,
        kinds.count("done"),
        kinds.count("skip"),
        kinds.count("refused"),
        kinds.count("to_run"),
        len(times),
        sum(times),
    )


def disk(found: Survey, cache_dir: Path) -> Disk:
    folder = next(p for p in (cache_dir, *cache_dir.parents) if p.exists())
    free = shutil.disk_usage(folder).free
    return Disk(found.room, tuple(d.what for d in found.downloads), folder, free)
