"""`tensor_stats`: AbsMax, standard deviation, kurtosis and outlier channels of weights, inputs, keys
and values of every layer, and the noise of rounding them (docs/statistics.md).

The statistics of arXiv 2402.18158 (AbsMax, Std, kurtosis), by which a tensor that is hard to quantize
is known before it is quantized. Windows are those of the perplexity protocol `gptq`. The rows of all
layers are in the cell's file ``layers.jsonl``; the record has the worst of each kind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, ClassVar, final

from pydantic import Field

from qeval.core.artifact import ModelRef
from qeval.core.options import GroupSize, Options
from qeval.core.record import Metric
from qeval.engines.base import LM
from qeval.tasks.base import Task, TaskContext, TaskResult
from qeval.tasks.perplexity import (
    TextOptions,
    check_windows,
    chosen,
    dataset_name,
    gptq_windows,
    spread_mark,
    text_of,
    window_length,
)
from qeval.tensor_stats.rows import Statistics, TensorRow, value, worst, write

if TYPE_CHECKING:
    from qeval.data.datasets import DataSource

_GROUPS = {"weight": ("weight",), "input": ("input",), "kv": ("key", "value")}
_CALLED = {"weight": "weights", "input": "inputs", "kv": "K, V"}
_WORST = {"sqnr": "lowest SQNR", "kurtosis": "largest kurtosis"}


class TensorStatsOptions(TextOptions):
    """The bits are those of the grids that rounding noise is measured on."""

    weight_bits: int = Field(default=4, ge=2, le=8)  # asymmetric
    group_size: GroupSize = -1  # of weights
    activation_bits: int = Field(default=8, ge=2, le=8)  # asymmetric, per token
    kv_bits: int = Field(default=4, ge=2, le=8)  # asymmetric, per token and head


@final
class TensorStats(Task[TensorStatsOptions]):
    version: ClassVar[int] = 2  # 2: no rows for routers
    Options: ClassVar[type[Options]] = TensorStatsOptions
    needs: ClassVar[frozenset[str]] = frozenset({"tensors"})
    on_simulated: ClassVar[bool] = True

    def label(self, options: TensorStatsOptions) -> str:
        return protocol_id(options)

    def preflight(self, options: TensorStatsOptions, data: DataSource, *, weak_sandbox: bool) -> None:
        """Raises DataError where the text cannot be found."""
        data.check(text_of(options))

    def preflight_model(self, options: TensorStatsOptions, model: ModelRef, data: DataSource) -> None:
        """Raises DataError where the text has no window, or the model takes none of that length."""
        check_windows("tensor_stats", options, model, data)

    def run(self, lm: LM, options: TensorStatsOptions, context: TaskContext) -> TaskResult:
        """Raises DataError where the text is shorter than one window, BuildError where group_size does
        not divide the inputs of every linear."""
        from qeval.tensor_stats.collect import Bits, collect

        seq_len = window_length("tensor_stats", options, lm, context)
        windows = gptq_windows(options, seq_len, context)
        ids = chosen(windows.ids, options, context.limit)
        bits = Bits(options.weight_bits, options.group_size, options.activation_bits, options.kv_bits)
        rows, notes = collect(lm.internals(), ids, bits, context.progress)
        about = {
            "model": context.model.id,
            "dtype": context.model.dtype,
            "dataset": dataset_name(options.dataset),
            "seq_len": seq_len,
            "windows": len(ids),
            "bits": asdict(bits),
        }
        file = context.out / "layers.jsonl"
        write(file, Statistics(about, tuple(rows)))
        facts = {
            "windows": {
                "n": len(ids),
                "seq_len": seq_len,
                "text_sha256": windows.text_sha256,
                "tokens_sha256": hashlib.sha256(repr(ids).encode()).hexdigest(),
            },
            "tokenizer_sha256": context.tokenizer.sha256,
            "worst": dict(_worst(rows)),
        }
        return TaskResult(
            tuple(_metrics(rows, protocol_id(options))),
            (*_summary(rows), *_broken(rows), *notes),
            {"layers": file},
            facts,
            seq_len,
        )


def protocol_id(options: TensorStatsOptions) -> str:
    """``tensor_stats/pydoc@512/W4A8KV4``; a group size of weights as ``W4g64``."""
    window = f"@{options.seq_len}" if options.seq_len else ""
    group = "" if options.group_size == -1 else f"g{options.group_size}"
    grids = f"W{options.weight_bits}{group}A{options.activation_bits}KV{options.kv_bits}"
    return f"tensor_stats/{dataset_name(options.dataset)}{window}/{grids}{spread_mark(options)}"


def _of(rows: Sequence[TensorRow], group: str) -> list[TensorRow]:
    return [row for row in rows if row.kind in _GROUPS[group]]


def _metrics(rows: Sequence[TensorRow], protocol: str) -> Iterator[Metric]:
    """The lowest SQNR of weights, inputs, keys and values; the largest kurtosis of weights, inputs."""
    for column, groups in (("sqnr", ("weight", "input", "kv")), ("kurtosis", ("weight", "input"))):
        for group in groups:
            own = _of(rows, group)
            ranked = worst(own, column)
            yield Metric(
                f"{column}_{group}",
                value(ranked[0], column) if ranked else None,
                protocol,
                unit="dB" if column == "sqnr" else "",
                n=len(own),
                nonfinite=_share(own),
                better="higher" if column == "sqnr" else "lower",
                pairs="none",
                change="none" if column == "sqnr" else "ratio",  # a logarithm has no ratio
                heading=f"{_WORST[column]} of {_CALLED[group]}",
            )


def _share(rows: Sequence[TensorRow]) -> float:
    """Of the values that are not finite."""
    lost = sum(row.nonfinite for row in rows)
    return lost / (lost + sum(row.count for row in rows)) if lost else 0.0


def _worst(rows: Sequence[TensorRow]) -> Iterator[tuple[str, list[dict[str, object]]]]:
    """The three tensors of each group that lose most."""
    for group in _GROUPS:
        yield (
            group,
            [
                {"tensor": row.where, "sqnr_db": row.sqnr_db, "kurtosis": row.kurtosis}
                for row in worst(_of(rows, group), "sqnr")[:3]
            ],
        )


def _summary(rows: Sequence[TensorRow]) -> Iterator[str]:
    first = [ranked[0] for group in _GROUPS if (ranked := worst(_of(rows, group), "sqnr"))]
    if first:
        yield "most rounding noise: " + ", ".join(f"{r.where} ({r.sqnr_db:.1f} dB)" for r in first)


def _broken(rows: Sequence[TensorRow]) -> Iterator[str]:
    found = [row for row in rows if row.nonfinite]
    if found:
        first, lost = found[0], sum(row.nonfinite for row in found)
        yield f"{lost} values in {len(found)} tensors are not finite, first {first.where}: left out"
