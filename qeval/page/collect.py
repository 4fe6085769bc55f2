"""All that a page shows, from records and the files beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qeval.core.record import Record
from qeval.page.changed import AllSides, changed
from qeval.page.layers import HeatMap, heat_maps
from qeval.page.measured import Certainty, Speed, Windows, certainties, speeds, windows
from qeval.page.origin import Download, Origin, downloads, origin
from qeval.page.verdict import Verdict, Wanted, verdicts
from qeval.report.compare import Margins
from qeval.report.draft import Draft, draft_of
from qeval.report.row_records import kept
from qeval.report.rows import build_table
from qeval.report.table import Table
from qeval.report.tidy import tidy_of


@dataclass(frozen=True)
class Page:
    """``table`` has all columns, of which a reader first sees those of ``first_columns``."""

    draft: Draft
    table: Table
    first_columns: frozenset[str]
    verdicts: tuple[Verdict, ...]
    certainties: tuple[Certainty, ...]
    windows: tuple[Windows, ...]
    speeds: tuple[Speed, ...]
    sides: AllSides
    layers: tuple[HeatMap, ...]
    origin: Origin
    downloads: tuple[Download, ...]


def collect(records: Sequence[Record], folders: Sequence[Path], wanted: Wanted, name: str) -> Page:
    """``name``: of the page's file.

    Raises:
        UsageError: no row is the baseline that is wanted, no column the metric.
    """
    margins = Margins(wanted.margin, wanted.margin)
    draft = draft_of(records, wanted.baseline, margins)
    table = build_table(records, columns=["*"], baseline=wanted.baseline, margins=margins)
    first = build_table(records, baseline=wanted.baseline, margins=margins)
    found = origin(draft, folders, name)
    lines = tidy_of(draft, table)
    return Page(
        draft,
        table,
        frozenset(column.id for column in first.columns),
        tuple(verdicts(records, draft, table, wanted)),
        tuple(certainties(draft)),
        tuple(windows(draft)),
        tuple(speeds(draft)),
        changed(draft),
        tuple(heat_maps(draft)),
        found,
        tuple(downloads(kept(records), folders, table, lines, found.commands)),
    )
