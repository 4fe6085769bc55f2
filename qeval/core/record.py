"""What one job found: the Record, one JSON line in ``records.jsonl``.

Three kinds of facts stay apart: what was asked (``cell``), what was found (``status``, ``metrics``,
``memory``, ``artifact``) and what it took (``timing``, ``conditions``, ``provenance``). JSON is strict:
a number that is not finite is ``None`` with its share counted (``Metric.nonfinite``), never ``NaN``.

A Metric says how it compares and how a table shows it. Records of 0.1.0, and plug-ins that say nothing,
are completed when they are read (``completed``); nothing else knows a metric or a task by its name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, get_args

from qeval.core.errors import StoreError, UsageError

SCHEMA_VERSION = 1

Status = Literal["ok", "failed", "oom", "timeout", "killed", "skipped"]
Better = Literal["lower", "higher", "none"]
Pairs = Literal["window", "problem", "item", "none"]
Change = Literal["relative", "difference", "points", "ratio", "time", "none"]
SHARE_UNITS = {"": 1.0, "share": 1.0, "%": 100.0}
"""Units of ``points``, and how much the whole is."""


@dataclass(frozen=True)
class Metric:
    """One number with its error and the protocol that defines it.

    ``values`` are the per-unit results behind ``value`` (mean NLL of each window, pass@k of each
    problem), in the protocol's order, so that standard errors and paired tests can be made later
    without a model. ``units`` names them where they have names (HumanEval task ids). ``low`` and
    ``high`` are a 95% interval where it is not that of ``stderr`` (intervals.half_width).

    ``better``, ``pairs`` and ``change`` say how two of them compare (report/compare.py). Units are
    matched by ``units``, or by their place where they have no names (windows of one text):

    change      value                    values of the units
    relative    any positive number      logarithms, whose mean is the value's
    difference  any number               the same
    points      a share of 1, or in %    the same
    ratio       speed, size              not used
    time        duration                 not used
    none        not compared             not used
    """

    name: str  # "ppl", "pass@1", "decode_tok_s", ...
    value: float | None  # None: not finite, or not measurable (see nonfinite)
    protocol: str  # e.g. "gptq/wikitext2"
    unit: str = ""  # "", "%", "tok/s", "s"
    stderr: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0  # how many units (windows, problems, repeats)
    nonfinite: float = 0.0  # share of the scored units that were not finite
    values: tuple[float | None, ...] = ()
    units: tuple[str, ...] = ()
    better: Better | None = None  # None, here and below: as ``completed`` has it
    pairs: Pairs | None = None  # what the values are of; "none": two records are not paired
    change: Change | None = None
    from_baseline: bool = False  # it says how far a row is from its baseline, and is 0 of that itself
    cost: bool | None = None  # what a run takes on its machine, not how good its answers are
    heading: str | None = None  # of its column
    group: str | None = None  # what it and its like are called under a table: "pass@k", "speed"
    shown: bool = True  # in tables; else in `qeval show` only


def check(metric: Metric) -> None:
    """Raises UsageError where a metric says what no table understands."""
    for word, known in (("better", Better), ("pairs", Pairs), ("change", Change)):
        said = getattr(metric, word)
        if said is not None and said not in get_args(known):
            raise UsageError(
                f"metric {metric.name!r}: {word} {said!r}: give {_either(get_args(known))}"
            )
    if metric.change == "points" and metric.unit not in SHARE_UNITS:
        raise UsageError(
            f"metric {metric.name!r}: change 'points' of the unit {metric.unit!r}: give "
            f"{_either(SHARE_UNITS)}, or another change"
        )
    if metric.units and len(metric.units) != len(metric.values):
        raise UsageError(
            f"metric {metric.name!r}: {len(metric.units)} units for {len(metric.values)} values: give "
            "each value its unit, or no units"
        )


def _either(words: Iterable[str]) -> str:
    *most, last = map(repr, words)
    return f"{', '.join(most)} or {last}"


@dataclass(frozen=True)
class MemoryReport:
    """docs/protocols.md, in bytes; None where the machine or engine has no such number.

    Measured in the cell's own process. ``vram_*`` exist only where a GPU was used; ``ram_peak`` is
    the peak resident set size of the process, whatever the device.
    """

    weights: int | None = None  # stored bytes incl. scales, zeros, outliers, without the next
    embeddings: int | None = None  # token embeddings and output head
    kv_cache: int | None = None  # at context tokens, one sequence
    context: int | None = None  # tokens the kv_cache number is for
    vram_allocated: int | None = None  # peak, torch's allocator
    vram_reserved: int | None = None  # peak, torch's allocator
    vram_process: int | None = None  # peak, as the driver sees it (NVML)
    ram_peak: int | None = None
    # A table has the memory of one task a model: the one with the lowest rank. None: after all others.
    rank: int | None = None


@dataclass(frozen=True)
class Conditions:
    """What a job ran on and with, as its worker found it; speed and memory mean nothing without it.
    None: unknown, or nothing of the kind was used."""

    host: str | None = None  # machine.host()
    device: str | None = None  # "cpu", "cuda:0"; "cuda:0,1" where the layers are spread; never "auto"
    device_name: str | None = None  # the GPU's, or the CPU's
    n_threads: int | None = None  # of the CPU
    cores: int | None = None  # of the CPU that the process could use
    batch_size: int | None = None  # most sequences computed at once
    engine_version: str | None = None  # of the libraries: "torch 2.13.0, transformers 5.17.0"
    load_before: float | None = None  # load average over a minute, own work included
    load_after: float | None = None
    others: float | None = None  # cores that other processes kept busy while the task ran


@dataclass(frozen=True)
class Record:
    """The outcome of one job. ``cell`` holds the plain description that the key was made from;
    ``folder`` is the results folder that it was read from, and is not written."""

    kind: Literal["build", "eval"]
    key: str
    cell: dict[str, Any]
    status: Status
    metrics: tuple[Metric, ...] = ()
    memory: MemoryReport | None = None
    artifact: dict[str, Any] | None = None  # Artifact.summary(): bpw, bytes, simulated, notes
    notes: tuple[str, ...] = ()  # what a reader of the table must know (drift, fall-backs, limits)
    files: dict[str, str] = field(default_factory=dict)  # name -> path relative to the results folder
    timing: dict[str, float] = field(default_factory=dict)  # seconds
    conditions: Conditions | None = None  # None: a record of 0.1.0, or no worker ran
    provenance: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    log: str | None = None  # of the worker, with its traceback; path relative to the results folder
    schema_version: int = SCHEMA_VERSION
    folder: str = field(default="", compare=False, repr=False)

    @property
    def settled(self) -> bool:
        """Measured, or skipped for a reason that its key contains (task, engine and method versions):
        nothing is to be done again."""
        return self.status in ("ok", "skipped")

    @property
    def asked_again(self) -> bool:
        """Skipped by a worker: what a server offers is not in the key, and may change."""
        return self.status == "skipped" and self.log is not None

    def to_json(self) -> dict[str, object]:
        return {name: finite(value) for name, value in asdict(self).items() if name != "folder"}

    @staticmethod
    def from_json(data: dict[str, Any], folder: str = "") -> Record:
        """The Record of one line of the results folder ``folder``.

        Raises:
            StoreError: the line was written by a newer qeval, or is not a record.
        """
        version = data.get("schema_version")
        if not isinstance(version, int):
            raise StoreError("not a qeval record (no schema_version)")
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"has schema version {version}, this qeval reads up to {SCHEMA_VERSION}: "
                "pip install --upgrade qeval"
            )
        try:
            kwargs = {**_known(Record, data), "folder": folder}
            kwargs["metrics"] = tuple(_metric(m) for m in data.get("metrics", ()))
            memory = data.get("memory")
            kwargs["memory"] = _memory(memory, data["cell"]) if memory else None
            found = data.get("conditions")
            kwargs["conditions"] = Conditions(**_known(Conditions, found)) if found else None
            kwargs["notes"] = tuple(data.get("notes", ()))
            return Record(**kwargs)
        except (TypeError, AttributeError, KeyError) as err:
            raise StoreError(f"not a qeval record ({err})") from err


def _metric(data: dict[str, Any]) -> Metric:
    lists = {"values": tuple(data.get("values", ())), "units": tuple(data.get("units", ()))}
    return completed(Metric(**{**_known(Metric, data), **lists}))


def _memory(data: dict[str, Any], cell: dict[str, Any]) -> MemoryReport:
    found = MemoryReport(**_known(MemoryReport, data))
    if found.rank is not None:
        return found
    return replace(found, rank=_RANKS.get((cell.get("task") or {}).get("name", "")))


def _known(
    cls: type[Record | Metric | MemoryReport | Conditions], data: dict[str, Any]
) -> dict[str, Any]:
    """Without the keys that a later version may add."""
    return {f.name: data[f.name] for f in fields(cls) if f.name in data}


def finite(value: object) -> object:
    """The same JSON value with every float that is not finite replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value


# What is known of metrics that say nothing of themselves.

_RANKS = {"speed": 0, "humaneval": 1, "mbpp": 2, "perplexity": 3}  # the tasks of 0.1.0
_HEADINGS = {
    "ppl": "PPL",
    "prefill_tok_s": "prefill",
    "decode_tok_s": "decode",
    "ttft_s": "first token",
    "step_ms": "step",
    "allocated_mib": "allocated",
    "sqnr_weight": "lowest SQNR of weights",
    "sqnr_input": "lowest SQNR of inputs",
    "sqnr_kv": "lowest SQNR of K, V",
    "kurtosis_weight": "largest kurtosis of weights",
    "kurtosis_input": "largest kurtosis of inputs",
}


class _Known(NamedTuple):
    better: Better
    pairs: Pairs
    change: Change
    cost: bool = False
    group: str | None = None


def completed(metric: Metric) -> Metric:
    """The metric with what it does not say, from the names that 0.1.0 had and from its unit."""
    known = _known_of(metric)
    heading = metric.heading or _HEADINGS.get(metric.name, metric.name.replace("_", " "))
    return replace(
        metric,
        better=metric.better or known.better,
        pairs=metric.pairs or known.pairs,
        change=metric.change or known.change,
        cost=known.cost if metric.cost is None else metric.cost,
        heading=heading,
        group=metric.group or known.group or heading,
    )


def _known_of(metric: Metric) -> _Known:
    name, unit = metric.name, metric.unit
    if name == "ppl":
        return _Known("lower", "window", "relative")
    if name.startswith("pass@"):
        return _Known("higher", "problem", "points", group="pass@k")
    if unit in ("share", "%"):
        whole = len(metric.values) > 1 and None not in metric.values
        return _Known("higher", "item" if whole else "none", "points")
    if unit == "tok/s":
        return _Known("higher", "none", "ratio", cost=True, group="speed")
    if unit in ("s", "ms"):
        return _Known("lower", "none", "time", cost=True, group="time")
    if unit in ("bytes", "MiB", "GiB"):
        return _Known("lower", "none", "ratio", cost=True)
    if unit == "dB":  # a logarithm: its ratio says nothing
        return _Known("higher", "none", "none")
    return _Known("lower" if name.startswith("kurtosis_") else "none", "none", "ratio")
