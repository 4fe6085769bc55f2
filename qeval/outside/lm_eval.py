"""lm-eval's ``results_*.json`` and ``samples_*.jsonl`` (as 0.4 writes them) as records.

Every metric keeps lm-eval's own task as its protocol, ``lm-eval/arc_easy 0-shot``, with the filter
where that is not ``none``. What has the rule of one of qeval's protocols shares its columns: the task
``lambada_openai``, and what qeval itself wrote (``qeval convert --to lm-eval``). Values of single
documents come from the samples of the same date, where their mean is the metric's; else the metric has
no units, and no test.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qeval.core.errors import DataError, UsageError, with_class
from qeval.core.files import parse_json
from qeval.core.jsonl import lines, parsed
from qeval.core.record import Conditions, Metric, Record, check
from qeval.stats.intervals import share_interval
from qeval.store.samples import lm_eval_unit

PROTOCOLS = {"lambada_openai": "lambada/openai"}
NAMES = {"perplexity": "ppl"}  # theirs: ours
_CONFIG = (
    "model",
    "model_args",
    "model_revision",
    "model_sha",
    "batch_size",
    "limit",
    "num_fewshot",
    "gen_kwargs",
    "random_seed",
)
_MAX_BYTES = 1 << 26
_CLOSE = 1e-6
TOLD = (  # of a Metric, in what qeval wrote
    "pairs",
    "change",
    "unit",
    "better",
    "heading",
    "group",
    "low",
    "high",
    "from_baseline",
    "cost",
)
Json = dict[str, Any]


def read(path: Path) -> list[Record]:
    """The records of one results file, one a task.

    Raises:
        DataError: it is no such file; names it.
    """
    if path.stat().st_size > _MAX_BYTES:
        raise DataError(f"{path}: over {_MAX_BYTES >> 20} MiB: no results of lm-eval have that size")
    data = parse_json(path.read_bytes(), str(path), DataError, "; give lm-eval's results_*.json")
    if not isinstance(data, dict) or not isinstance(data.get("results"), dict):
        raise DataError(f"{path}: no key 'results': give lm-eval's results_*.json")
    try:
        found = [_record(path, data, str(task)) for task in data["results"] if _measured(data, task)]
    except (AttributeError, KeyError, TypeError, ValueError, UsageError) as err:
        raise DataError(f"{path}: not as lm-eval writes its results: {with_class(err)}") from err
    if not found:
        raise DataError(f"{path}: none of its tasks has a number")
    return found


def _measured(data: Json, task: str) -> bool:
    """A group's mean of its tasks is no number of its own."""
    groups = data.get("groups") if isinstance(data.get("groups"), dict) else {}
    return isinstance(data["results"][task], dict) and task not in (groups or {})


def _record(path: Path, data: Json, task: str) -> Record:
    config = data.get("config") if isinstance(data.get("config"), dict) else {}
    assert config is not None
    samples = _samples(path, task)
    own = _written_by_qeval(data, task)
    metrics = tuple(own.told(m) if own else m for m in _metrics(data, task, samples))
    asked = {name: config[name] for name in _CONFIG if config.get(name) is not None}
    program = f"lm-eval {data['lm_eval_version']}" if data.get("lm_eval_version") else "lm-eval"
    libraries = data.get("transformers_version")
    versions = [program, *([f"transformers {libraries}"] if libraries else [])]
    name = str(data.get("model_name") or config.get("model_args") or path.parent.name)
    device = config.get("device")
    cell = {
        "model": {"id": name, "identity": "", "dtype": _dtype(config)},
        "quantization": {
            "name": "outside",
            "label": _label(name, "lm-eval"),
            "options": {"model": name, "folder": path.parent.name},
        },
        "task": {"name": "lm-eval", "label": task, "options": _options(data, task)},
        "engine": {"name": f"lm-eval {config.get('model') or ''}".strip()},
        "limit": own.limit if own else None,
    }
    date = data.get("date")
    text = json.dumps([str(path.resolve()), task], sort_keys=True)
    return Record(
        "eval",
        hashlib.sha256(text.encode()).hexdigest(),
        cell,
        "ok",
        metrics,
        files={"samples": samples.file} if samples and samples.file else {},
        timing={"end": float(date)} if isinstance(date, int | float) else {},
        conditions=Conditions(
            host=_text(config.get("host")),
            device=str(device) if device else None,
            device_name=_text(config.get("device_name")),
            n_threads=_whole(config.get("n_threads")),
            batch_size=_whole(config.get("batch_size")),
            engine_version=_text(config.get("engine_version")) or ", ".join(versions),
        ),
        provenance={
            "outside": {"program": program, "file": path.name, **asked},
            **(own.hashes if own else {}),
        },
        folder=str(path.parent),
    )


@dataclass(frozen=True)
class _Own:
    """What ``qeval convert --to lm-eval`` adds to the configuration of a task."""

    protocol: str
    limit: int | None
    metrics: Mapping[str, Json]
    named: bool
    hashes: dict[str, object]

    def told(self, metric: Metric) -> Metric:
        """As it was in qeval's record: how it compares, and units without names."""
        said = {k: v for k, v in (self.metrics.get(metric.name) or {}).items() if k in TOLD}
        if not metric.values:
            said["pairs"] = "none"
        found = replace(metric, **said, units=metric.units if self.named else ())
        check(found)
        return found


def _written_by_qeval(data: Json, task: str) -> _Own | None:
    if (data.get("config") or {}).get("model") != "qeval":
        return None
    told = ((data.get("configs") or {}).get(task) or {}).get("metadata") or {}
    try:
        return _Own(
            str(told["protocol"]),
            told["limit"],
            dict(told["metrics"]),
            bool(told["named_units"]),
            {name: value for name, value in dict(told["hashes"]).items() if value},
        )
    except (KeyError, TypeError, ValueError):
        return None  # of another version: an ordinary task of lm-eval


def _dtype(config: Mapping[str, Any]) -> str:
    return str(config.get("model_dtype") or "").removeprefix("torch.")


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _whole(value: object) -> int | None:
    text = str(value)
    return int(text) if text.isdigit() else None


def _label(name: str, program: str) -> str:
    return f"{name.rstrip('/').rpartition('/')[2]} ({program})"


def _options(data: Json, task: str) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, name in (("n-shot", "n_shot"), ("versions", "version")):
        value = (data.get(key) or {}).get(task)
        found |= {} if value is None else {name: value}
    return found


@dataclass(frozen=True)
class _Samples:
    file: str
    lines: Sequence[Mapping[str, Any]]


def _samples(path: Path, task: str) -> _Samples | None:
    """Those of the same date, in the order of the documents."""
    date = path.stem.removeprefix("results_")
    file = path.with_name(f"samples_{task}_{date}.jsonl")
    if not file.is_file():
        return None
    found = [parsed(line, f"{file}:{n}") for n, line in lines(file)]
    if not all(isinstance(line, dict) and "doc_id" in line for line in found):
        raise DataError(f"{file}: a line without doc_id: give lm-eval's samples_*.jsonl")
    return _Samples(file.name, found)


def _metrics(data: Json, task: str, samples: _Samples | None) -> list[Metric]:
    found = []
    direction = (data.get("higher_is_better") or {}).get(task) or {}
    for key, value in data["results"][task].items():
        name, _, kind = str(key).partition(",")
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        if not plain or not kind or name.endswith("_stderr") or name in ("sample_len", "alias"):
            continue
        stderr = data["results"][task].get(f"{name}_stderr,{kind}")
        stderr = float(stderr) if isinstance(stderr, int | float) and math.isfinite(stderr) else None
        higher = direction.get(name)
        protocol = _protocol(data, task, kind)
        one = _Found(name, float(value), stderr, higher, protocol, kind, task)
        found.append(_metric(one, samples, _count(data, task, samples)))
    return found


@dataclass(frozen=True)
class _Found:
    name: str
    value: float
    stderr: float | None
    higher: object
    protocol: str
    kind: str  # the filter
    task: str


def _protocol(data: Json, task: str, kind: str) -> str:
    config = data.get("config") or {}
    if own := _written_by_qeval(data, task):
        return own.protocol
    shots = (data.get("n-shot") or {}).get(task)
    if task in PROTOCOLS and not shots and not config.get("limit"):
        return PROTOCOLS[task]
    parts = [f"lm-eval/{task}", f"{shots}-shot" if shots is not None else ""]
    parts += [f"limit {config['limit']:g}"] if isinstance(config.get("limit"), int | float) else []
    return " ".join(part for part in (*parts, "" if kind == "none" else kind) if part)


def _count(data: Json, task: str, samples: _Samples | None) -> int:
    said = ((data.get("n-samples") or {}).get(task) or {}).get("effective")
    if isinstance(said, int):
        return said
    return len({line["doc_id"] for line in samples.lines}) if samples else 0


def _metric(one: _Found, samples: _Samples | None, n: int) -> Metric:
    ppl = one.name == "perplexity"
    values, units = _values(one, samples)
    share = 0.0 <= one.value <= 1.0 and one.higher is True and all(0 <= v <= 1 for v in values)
    low, high = (share_interval(values) if share and values else None) or (None, None)
    if one.protocol.startswith("lambada/"):
        units = tuple(unit.partition(":")[0] for unit in units)  # its passages have numbers
    return Metric(
        NAMES.get(one.name, one.name),
        one.value if math.isfinite(one.value) else None,
        one.protocol,
        unit="share" if share else "",
        stderr=one.stderr,
        low=low,
        high=high,
        n=n or len(values),
        values=values,
        units=units,
        better="lower" if ppl or one.higher is False else "higher" if one.higher else "none",
        pairs="item" if values else "none",
        change="relative" if ppl else "points" if share else "difference" if values else "ratio",
        cost=False,
        heading="PPL" if ppl else one.name,
    )


def _values(one: _Found, samples: _Samples | None) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """Of each document, where the metric is their mean; of a perplexity the mean's exponential."""
    if samples is None:
        return (), ()
    own = [x for x in samples.lines if one.name in x and x.get("filter", one.kind) == one.kind]
    own.sort(key=lambda line: (not isinstance(line["doc_id"], int), line["doc_id"]))
    numbers = [line[one.name] for line in own]
    units = tuple(lm_eval_unit(line) for line in own)
    plain = all(isinstance(x, int | float) and math.isfinite(x) for x in numbers)
    if len(numbers) < 2 or not plain or len(set(units)) < len(units):
        return (), ()
    values = tuple(-float(x) if one.name == "perplexity" else float(x) for x in numbers)
    mean = math.fsum(values) / len(values)
    mean = math.exp(min(mean, 700.0)) if one.name == "perplexity" else mean
    if not math.isclose(mean, one.value, rel_tol=_CLOSE, abs_tol=_CLOSE):
        return (), ()
    return values, units
