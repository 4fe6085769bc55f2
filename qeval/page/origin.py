"""Where the numbers come from: versions, machines and texts, a warning where they are not the same for
all rows, and the files and commands that make the results again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from qeval.comparison.conditions import facts_of
from qeval.core.record import Record
from qeval.exports.tidy_files import csv_text as tidy_csv
from qeval.page.verdict import short_name
from qeval.plan.kept_spec import SPEC_NAME
from qeval.report.draft import Draft
from qeval.report.render import csv_text as table_csv
from qeval.report.results import results_folders
from qeval.report.row_records import names
from qeval.report.table import Table
from qeval.report.tidy import Line

_KINDS = ("versions", "hardware", "data")
_OF_ENGINE = ("engine version", "batch size")
LONGEST = 12  # rows named in a warning
MOST_RECORDS = 7_000_000  # characters; what is over it leaves the units' values out


@dataclass(frozen=True)
class Fact:
    """``values``: each with the names of the rows that have it. ``of``: the task or engine that it
    concerns, "" for all."""

    kind: str
    what: str
    values: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def mixed(self) -> bool:
        return len(self.values) > 1


@dataclass(frozen=True)
class Origin:
    """``warnings``: a line each. ``measured``: the first and last day."""

    facts: tuple[Fact, ...]
    warnings: tuple[str, ...]
    measured: str
    commands: tuple[str, ...]


@dataclass(frozen=True)
class Download:
    """A file that the page holds; ``note``: what is not in it."""

    name: str
    kind: str  # its media type
    text: str
    note: str = ""


def origin(draft: Draft, folders: Sequence[Path], page: str) -> Origin:
    """``page``: the name of the page's file."""
    facts = _facts(draft)
    kept = [folder for folder in results_folders(folders) if (folder / SPEC_NAME).is_file()]
    runs = tuple(
        f"qeval run {shlex.quote(str(f / SPEC_NAME))} --results {shlex.quote(str(f))}" for f in kept
    )
    made = shlex.join(["qeval", "report", *map(str, folders), "-o", page])
    return Origin(facts, tuple(_warnings(facts)), _measured(draft), (*runs, made))


def _facts(draft: Draft) -> tuple[Fact, ...]:
    found: dict[tuple[str, str], dict[str, dict[str, None]]] = {}
    several = len({row.identity for row in draft.rows}) > 1
    for (model, label), row in zip(names(draft.rows), draft.rows, strict=True):
        name = f"{short_name(model)} · {label}" if several else label
        for record in row.evals:
            for kind, what, value in facts_of(record) if record.status == "ok" else ():
                if kind not in _KINDS:
                    continue
                value = value[:12] if what == "git_commit" else value
                said = f"{what} of {row.engine}" if what in _OF_ENGINE else what
                said = f"{said}, {short_name(model)}" if kind == "data" and several else said
                found.setdefault((kind, said), {}).setdefault(value, {})[name] = None
    facts = [
        Fact(kind, what, tuple((value, tuple(rows)) for value, rows in values.items()))
        for (kind, what), values in found.items()
    ]
    return tuple(sorted(facts, key=lambda f: (not f.mixed, _KINDS.index(f.kind))))


def _warnings(facts: Iterable[Fact]) -> Iterator[str]:
    for fact in facts:
        if fact.what == "git_dirty" and any(value == "true" for value, _ in fact.values):
            yield "measured by a checkout of qeval with changes that are not committed"
        elif fact.mixed:
            said = "; ".join(f"{value}: {_rows(rows)}" for value, rows in fact.values)
            yield f"{fact.what} is not the same for all numbers: {said}"


def _rows(rows: Sequence[str]) -> str:
    more = len(rows) - LONGEST
    return ", ".join(rows[:LONGEST]) + (f" and {more} more" if more > 0 else "")


def _measured(draft: Draft) -> str:
    ends = [t for row in draft.rows for r in row.evals if (t := r.timing.get("end"))]
    days = (
        [datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%d") for t in (min(ends), max(ends))]
        if ends
        else []
    )
    return " to ".join(dict.fromkeys(days))


def downloads(
    records: Sequence[Record],
    folders: Sequence[Path],
    table: Table,
    lines: Sequence[Line],
    commands: Sequence[str],
) -> Iterator[Download]:
    """The spec of each folder, the commands, the table, all metrics, the records.

    Args:
        lines: report/tidy.py's.
    """
    kept = [folder for folder in results_folders(folders) if (folder / SPEC_NAME).is_file()]
    for folder in kept:
        name = SPEC_NAME if len(kept) == 1 else f"{folder.resolve().name}.{SPEC_NAME}"
        text = (folder / SPEC_NAME).read_text(encoding="utf-8", errors="replace")
        yield Download(name, "application/yaml", text)
    yield Download("commands.sh", "text/x-shellscript", "".join(f"{c}\n" for c in commands))
    yield Download("table.csv", "text/csv", table_csv(table))
    yield Download("metrics.csv", "text/csv", tidy_csv(lines))
    yield _records(records)


def _records(records: Sequence[Record]) -> Download:
    made, kind = [_line(r) for r in records], "application/x-ndjson"
    if sum(map(len, made)) <= MOST_RECORDS:
        return Download("records.jsonl", kind, "".join(made))
    bare = [
        replace(r, metrics=tuple(replace(m, values=(), units=()) for m in r.metrics)) for r in records
    ]
    note = "without the values of single windows and problems, which would not fit a page"
    return Download("records.jsonl", kind, "".join(map(_line, bare)), note)


def _line(record: Record) -> str:
    """As ``Record.to_json`` has it, without its copy of every number."""
    known = {name: value for name, value in vars(record).items() if name != "folder"}
    known["metrics"] = [vars(metric) for metric in record.metrics]
    for name in ("memory", "conditions"):
        known[name] = known[name] and vars(known[name])
    try:
        return json.dumps(known, allow_nan=False) + "\n"
    except ValueError:  # of another program's files
        return json.dumps(record.to_json(), allow_nan=False) + "\n"
