"""Reading results folders for `qeval table` and `qeval show`, which must answer in a blink."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qeval.record import Record
from qeval.store import latest, read_many
from qeval.streams import say

FAILED = 3  # exit code: some cells failed
_LOGS = 3  # named in one line


def results_folders(paths: Sequence[Path]) -> list[Path]:
    """The folders themselves, or, where one holds no records, the results folders inside it."""
    found: list[Path] = []
    for path in paths:
        inner = sorted(p.parent for p in path.glob("*/records.jsonl"))
        found += [path] if (path / "records.jsonl").exists() or not inner else inner
    return found


def read_results(paths: Sequence[Path]) -> list[Record]:
    """All records of the folders; what had to be left out is warned of on stderr.

    Raises:
        StoreError: a folder is missing, empty, or written by a newer qeval.
    """
    records, warnings = read_many(results_folders(paths))
    warn(warnings)
    return records


def find_record(prefix: str, paths: Sequence[Path]) -> Record:
    """The newest record whose key begins with ``prefix``; UsageError where not exactly one does."""
    from qeval.report.describe import pick

    return pick(read_results(paths), prefix)


def failed_cells(records: Sequence[Record]) -> list[Record]:
    """The newest record of every cell that has neither a number nor a reason to have none."""
    evals = latest(r for r in records if r.kind == "eval").values()
    return [r for r in evals if r.status not in ("ok", "skipped")]


def failures_line(failed: Sequence[Record], folder: Path) -> str:
    """How many cells failed, and where their logs are."""
    logs = list(dict.fromkeys(str(folder / r.log) for r in failed if r.log))
    shown = ", ".join(logs[:_LOGS]) + (f" and {len(logs) - _LOGS} more" if len(logs) > _LOGS else "")
    cells = "1 cell" if len(failed) == 1 else f"{len(failed)} cells"
    return f"{cells} failed" + (
        f"; log: {shown}" if len(logs) == 1 else f"; logs: {shown}" if logs else ""
    )


def cell_name(cell: dict[str, Any]) -> str:
    """``model · quantization · task [first N]`` of a Record's cell."""
    first = f" [first {cell['limit']}]" if cell.get("limit") else ""
    names = (cell["model"]["id"], cell["quantization"]["label"], cell["task"]["label"])
    return " · ".join(names) + first


def warn(warnings: Sequence[str]) -> None:
    for line in warnings:
        say(f"warning: {line}")
