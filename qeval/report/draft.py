"""All rows and columns that records make, before a choice is shown, and how two cells compare."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from qeval.core.record import Record
from qeval.report.columns import TIME_NAMES
from qeval.report.compare import MARGINS, Difference, Margins, difference, other_text
from qeval.report.costs import Costs, costs
from qeval.report.fill import Cells, Filled, FoundCell, cells, metric_columns, places
from qeval.report.places import Place, labels
from qeval.report.row_records import RowRecords, choose_baselines, kept, sources


@dataclass
class Draft:
    """``costs`` and ``cells``: of each row."""

    rows: list[RowRecords]
    columns: dict[str, Filled]  # of metrics
    places: dict[Place, str]
    hosts: dict[Place, str]
    costs: list[Costs]
    cells: list[Cells]
    shown: list[int] = field(default_factory=list)  # rows, in order
    margins: Margins = MARGINS


def draft_of(
    records: Iterable[Record], baseline: str | None = None, margins: Margins = MARGINS
) -> Draft:
    """Raises UsageError where no row is called ``baseline``."""
    rows = sources(kept(records))
    if baseline is not None:
        choose_baselines(rows, baseline)
    found = costs(rows)
    measured = {place for one in found for place in one.tasks if one.peaks_at(place)}
    hosts = {place for one in found for (name, place) in one.facts if place and name in TIME_NAMES}
    named = labels([*places(rows), *measured])
    filled = metric_columns(rows, named)
    inside = [cells(row, filled, named) for row in rows]
    shown = list(range(len(rows)))
    return Draft(rows, filled, named, labels(hosts), found, inside, shown, margins)


def from_baseline(
    ours: FoundCell, base: FoundCell | None, margins: Margins = MARGINS
) -> Difference | str | None:
    """``between``; None of a number that says itself how far the row is from its baseline."""
    if base is None or ours.metric is None or base.metric is None:
        return None
    if ours.metric.from_baseline and base.record.cell.get("baseline"):
        return None
    return between(ours, base, margins)


def between(ours: FoundCell, theirs: FoundCell, margins: Margins = MARGINS) -> Difference | str | None:
    """The difference of two rows in one column; the reason where they cannot be compared, None where a
    number is missing."""
    if ours.metric is None or theirs.metric is None:
        return None
    if ours.metric.pairs == "window" and (other := other_text(ours.record, theirs.record)):
        return other
    return difference(ours.metric, theirs.metric, margins)
