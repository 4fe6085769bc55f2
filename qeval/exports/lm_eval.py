"""Results and samples as lm-eval 0.4.13 writes them, so that its tools read them.

One folder a row with ``results_DATE.json`` and ``samples_TASK_DATE.jsonl``, as lm-eval's
EvaluationTracker names them. A task is a protocol of qeval's; its alias is the protocol's id.
Perplexity is called ``perplexity``, and a sample's value of it is a log-likelihood (the mean of its
tokens), as in lm-eval.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from qeval.core import __version__
from qeval.core.files import write_atomic
from qeval.core.record import Metric, Record, finite
from qeval.exports.rows import ExportRow
from qeval.outside.lm_eval import NAMES, TOLD
from qeval.store.results import task_title
from qeval.store.samples import KeptSamples

_NAMES = {ours: theirs for theirs, ours in NAMES.items()}


def write_lm_eval(row: ExportRow, folder: Path) -> list[Path]:
    """The files of a row, in a folder of its own; those written."""
    by_task: dict[str, list[tuple[Record, Metric]]] = {}
    for record, metric in row.measured():
        if metric.value is not None:
            title = task_title(metric.protocol, record.cell.get("limit"))
            by_task.setdefault(title, []).append((record, metric))
    ends = [r.timing["end"] for r in row.records.evals if "end" in r.timing]
    date = datetime.fromtimestamp(max(ends, default=0.0), UTC).strftime("%Y-%m-%dT%H-%M-%S.%f")
    own = folder / row.file_name
    own.mkdir(parents=True, exist_ok=True)
    written = [own / f"results_{date}.json"]
    text = json.dumps(finite(_results(row, by_task)), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(written[0], text + "\n")
    for title, found in by_task.items():
        lines = list(_samples([metric for _, metric in found], KeptSamples(found[0][0])))
        if lines:
            path = own / f"samples_{task_name(title)}_{date}.jsonl"
            write_atomic(
                path, "".join(json.dumps(finite(line), ensure_ascii=False) + "\n" for line in lines)
            )
            written.append(path)
    return written


def task_name(title: str) -> str:
    return re.sub(r"\W+", "_", title).strip("_")


def _results(row: ExportRow, by_task: dict[str, list[tuple[Record, Metric]]]) -> dict[str, object]:
    results: dict[str, dict[str, object]] = {}
    higher: dict[str, dict[str, bool]] = {}
    counts, versions = {}, {}
    configs: dict[str, dict[str, object]] = {}
    for title, found in by_task.items():
        name = task_name(title)
        results[name] = {"alias": title}
        for record, metric in found:
            called = _NAMES.get(metric.name, metric.name)
            results[name][f"{called},none"] = metric.value
            results[name][f"{called}_stderr,none"] = "N/A" if metric.stderr is None else metric.stderr
            if metric.better in ("higher", "lower"):
                higher.setdefault(name, {})[called] = metric.better == "higher"
            task = record.cell.get("task") or {}
            versions[name] = task.get("version", 1)
            configs.setdefault(name, {"task": name, "metadata": _told(record, found)})
            counts[name] = {"original": metric.n, "effective": metric.n}
    model = row.records.model
    first = next((r for r in row.records.evals if r.conditions), None)
    found_on = first.conditions if first else None
    return {
        "results": results,
        "group_subtasks": {name: [] for name in results},
        "configs": configs,
        "versions": versions,
        "n-shot": dict.fromkeys(results, 0),
        "higher_is_better": higher,
        "n-samples": counts,
        "config": {
            "model": "qeval",
            "model_args": {"pretrained": model.get("id"), "quantization": row.label},
            "model_dtype": row.records.dtype or None,
            "batch_size": found_on.batch_size if found_on else None,
            "device": found_on.device if found_on else None,
            "limit": None,
            "qeval": __version__,
            "engine": row.records.engine,
            "engine_version": found_on.engine_version if found_on else None,
            "host": found_on.host if found_on else None,
            "device_name": found_on.device_name if found_on else None,
            "n_threads": found_on.n_threads if found_on else None,
        },
        "git_hash": row.records.evals[0].provenance.get("git_commit"),
        "date": max((r.timing.get("end", 0.0) for r in row.records.evals), default=0.0),
        "model_source": "qeval",
        "model_name": f"{row.model} {row.label}",
        "model_name_sanitized": row.file_name,
    }


def _told(record: Record, found: Sequence[tuple[Record, Metric]]) -> dict[str, object]:
    """What lm-eval has no word for; qeval reads it back (outside/lm_eval.py)."""
    metrics = [metric for _, metric in found]
    return {
        "protocol": metrics[0].protocol,
        "limit": record.cell.get("limit"),
        "options": (record.cell.get("task") or {}).get("options"),
        "named_units": any(metric.units for metric in metrics),
        "metrics": {m.name: {key: getattr(m, key) for key in TOLD} for m in metrics},
        "hashes": {key: record.provenance.get(key) for key in ("text_sha256", "tokens_sha256")},
    }


def _samples(metrics: Sequence[Metric], kept: KeptSamples) -> Iterator[dict[str, object]]:
    """A line a unit, with the metrics of the task that have the same units."""
    paired = [m for m in metrics if m.values and m.pairs not in (None, "none")]
    own = [m for m in paired if (m.units, len(m.values)) == (paired[0].units, len(paired[0].values))]
    for i in range(len(own[0].values) if own else 0):
        unit = own[0].units[i] if own[0].units else str(i)
        answers = [answer.completion for answer in kept.of(unit)]
        hashed = hashlib.sha256(unit.encode()).hexdigest()
        yield {
            "doc_id": i,
            "doc": {"unit": unit},
            "target": "",
            "arguments": {},
            "resps": [answers],
            "filtered_resps": answers,
            "filter": "none",
            "metrics": [_NAMES.get(m.name, m.name) for m in own],
            "doc_hash": hashed,
            "prompt_hash": hashed,
            "target_hash": hashlib.sha256(b"").hexdigest(),
            **{_NAMES.get(m.name, m.name): _value(m, i) for m in own},
        }


def _value(metric: Metric, i: int) -> float | None:
    value = metric.values[i]
    return -value if value is not None and metric.name == "ppl" else value
