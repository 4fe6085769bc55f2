"""The rows of results as they are exported: each with its records and its tidy lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from qeval.core.errors import UsageError, did_you_mean
from qeval.core.record import Metric, Record
from qeval.report.compare import MARGINS, Margins
from qeval.report.draft import draft_of
from qeval.report.fill import Cells
from qeval.report.row_records import RowRecords, names
from qeval.report.tidy import tidy

Line = dict[str, object]


@dataclass(frozen=True)
class ExportRow:
    """``lines``: its own of ``tidy``; ``cells``: the newest record and metric of each column."""

    model: str
    label: str
    records: RowRecords
    cells: Cells
    lines: tuple[Line, ...]

    @property
    def name(self) -> str:
        return f"{self.model} · {self.label}"

    @property
    def file_name(self) -> str:
        """``org__model__Q8_0``: letters, digits, ``.``, ``_`` and ``-``."""
        return re.sub(r"[^\w.-]+", "_", f"{self.model.strip('/').replace('/', '__')}__{self.label}")

    @property
    def numbers(self) -> list[Line]:
        """The lines of what was measured with a value."""
        return [line for line in self.lines if line["metric"] and line["value"] is not None]

    def measured(self) -> Iterator[tuple[Record, Metric]]:
        """The newest of each metric, those that no table shows included."""
        seen = set()
        for cell in self.cells.values():
            if cell is not None and cell.metric is not None and cell.record.key not in seen:
                seen.add(cell.record.key)
                yield from ((cell.record, metric) for metric in cell.record.metrics)


def export_rows(
    records: Iterable[Record], baseline: str | None = None, margins: Margins = MARGINS
) -> list[ExportRow]:
    """All rows, the floors included.

    Raises:
        UsageError: no row is called ``baseline``.
    """
    records = list(records)
    draft = draft_of(records, baseline, margins)
    lines = tidy(records, baseline, margins)
    found = []
    for row, (model, label), cells in zip(draft.rows, names(draft.rows), draft.cells, strict=True):
        where = (model, row.dtype or None, label)
        own = tuple(x for x in lines if (x["model"], x["dtype"], x["row"]) == where)
        found.append(ExportRow(model, label, row, cells, own))
    return found


def called(rows: Sequence[ExportRow], name: str) -> ExportRow:
    """The one row of this label, ``model · label`` or method.

    Raises:
        UsageError: there is none, or there are several.
    """
    wanted = name.lower()
    own = [row for row in rows if not row.records.floor]
    found = [row for row in own if wanted in (row.label.lower(), row.name.lower())]
    found = found or [
        row
        for row in own
        if wanted in {str(row.records.quantization.get(key)).lower() for key in ("label", "name")}
    ]
    if not found:
        raise UsageError(f"no row is called {name!r}{did_you_mean(name, {row.label for row in own})}")
    if len(found) > 1:
        raise UsageError(
            f"{len(found)} rows are called {name!r}: give one of "
            f"{', '.join(repr(row.name) for row in found[:4])}"
        )
    return found[0]
