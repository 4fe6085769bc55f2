"""Reading results folders for `qeval table` and `qeval show`, which must answer in a blink."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qeval.core.console import warn
from qeval.core.record import Record
from qeval.outside.find import is_outside, joined, read_path
from qeval.store.records import read_many


def results_folders(paths: Sequence[Path]) -> list[Path]:
    """The folders themselves, or, where one holds no records, the results folders inside it."""
    found: list[Path] = []
    for path in paths:
        inner = sorted(p.parent for p in path.glob("*/records.jsonl")) if path.is_dir() else []
        found += [path] if (path / "records.jsonl").exists() or not inner else inner
    return found


def read_results(paths: Sequence[Path]) -> list[Record]:
    """All records of the folders, named and ordered by the spec that each keeps, and those of other
    programs' files and folders among the paths (outside/); what had to be left out is warned of on
    stderr.

    Raises:
        StoreError: a folder is missing, empty, or written by a newer qeval.
        DataError: a file of another program is none that is known.
    """
    from qeval.plan.kept_spec import as_kept_spec_says

    records: list[Record] = []
    outside: list[Record] = []
    for folder in dict.fromkeys(results_folders(paths)):
        if not (folder / "records.jsonl").exists() and is_outside(folder):
            outside += read_path(folder)
            continue
        found, warnings = read_many([folder])
        warn(warnings)
        records += as_kept_spec_says(found, folder)
    return [*records, *joined(records, outside)]
