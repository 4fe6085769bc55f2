"""Reading results folders for `qeval table` and `qeval show`, which must answer in a blink."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qeval.core.record import Record
from qeval.store.records import latest

FAILED = 3  # exit code: some cells failed
_LOGS = 3  # named in one line


def failed_cells(records: Sequence[Record]) -> list[Record]:
    """The newest record of every cell that has neither a number nor a reason to have none."""
    evals = latest(r for r in records if r.kind == "eval").values()
    return [r for r in evals if not r.settled]


def put_aside(folder: Path, keys: Sequence[str]) -> None:
    """Rename what cells left in a results folder (samples, scored windows), so that none of it is taken
    for a part of a new measurement."""
    for key in keys:
        path = folder / "cells" / key[:16]
        if path.is_dir() and any(path.iterdir()):
            number = 1 + sum(1 for _ in path.parent.glob(f"{path.name}.before-*"))
            path.rename(path.with_name(f"{path.name}.before-{number}"))


def failures_line(failed: Sequence[Record], folder: Path) -> str:
    """How many cells failed, and where their logs are."""
    logs = list(dict.fromkeys(str(folder / r.log) for r in failed if r.log))
    shown = ", ".join(logs[:_LOGS]) + (f" and {len(logs) - _LOGS} more" if len(logs) > _LOGS else "")
    cells = "1 cell" if len(failed) == 1 else f"{len(failed)} cells"
    return f"{cells} failed" + (
        f"; log: {shown}" if len(logs) == 1 else f"; logs: {shown}" if logs else ""
    )


def is_meant(patterns: Sequence[str], *names: str) -> bool:
    """Whether a pattern is a part of one of the names, or a glob that matches it whole; upper and lower
    case are alike."""
    wanted, lower = [p.lower() for p in patterns], [n.lower() for n in names]
    return any(p in name or fnmatch.fnmatchcase(name, p) for p in wanted for name in lower)


def cell_name(cell: dict[str, Any]) -> str:
    """``model · quantization · task [first N]`` of a Record's cell."""
    parts = [(cell.get(part) or {}) for part in ("model", "quantization", "task")]
    names = (str(p.get("id") or p.get("label") or p.get("name", "?")) for p in parts)
    return task_title(" · ".join(names), cell.get("limit"))


def task_title(label: str, limit: int | None) -> str:
    """``gptq/wikitext2 [first 16]``."""
    return f"{label} [first {limit}]" if limit else label
