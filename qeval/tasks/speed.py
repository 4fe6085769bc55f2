"""`speed`: prefill and decode tokens a second, and time to first token (docs/protocols.md).

Greedy generation of a fixed number of tokens from fixed random prompts, no end-of-sequence. One
warm-up, then the median of ``repeats`` with its minimum and maximum. With T(n) the time for n new
tokens: prefill = prompt tokens / T(1); decode = batch (n - 1) / (T(n) - T(1)), both measured one
after the other in every repeat, so that a machine that drifts does so in both; time to first token =
T(1) at batch 1.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Annotated, ClassVar, final

from pydantic import Field

from qeval.core.errors import DataError, EngineError
from qeval.core.options import Options
from qeval.core.record import Metric
from qeval.engines.base import LM, Sampling
from qeval.tasks.base import Task, TaskContext, TaskResult
from qeval.tasks.served import Load, measure

if TYPE_CHECKING:
    from qeval.data.datasets import DataSource

SPREAD = 0.1  # of the median, between the slowest and the fastest repeat


MOST = 10_000_000  # tokens
BatchSize = Annotated[int, Field(ge=1, le=65_536)]


class SpeedOptions(Options):
    prefill_tokens: int = Field(default=2048, ge=2, le=MOST)  # cut to what the model's maximum leaves
    decode_prompt: int = Field(default=128, ge=1, le=MOST)  # prompt tokens before decoding
    new_tokens: int = Field(default=64, ge=2, le=MOST)
    batch_sizes: list[BatchSize] = Field(default=[1, 8], min_length=1)  # of decoding
    repeats: int = Field(default=3, ge=1, le=1000)


@final
class Speed(Task[SpeedOptions]):
    version: ClassVar[int] = 2  # 2: not ended by a model's end-of-sequence; the tokens are counted
    Options: ClassVar[type[Options]] = SpeedOptions
    needs: ClassVar[frozenset[str]] = frozenset({"generate"})
    on_simulated: ClassVar[bool] = False  # they run as the float model does
    measures_machine: ClassVar[bool] = True

    def label(self, options: SpeedOptions) -> str:
        if options == SpeedOptions():
            return "speed"
        return f"speed p{options.prefill_tokens} d{options.decode_prompt}+{options.new_tokens}"

    def takes_limit(self, options: SpeedOptions) -> bool:
        return False

    def preflight(self, options: SpeedOptions, data: DataSource, *, weak_sandbox: bool) -> None:
        """Needs nothing but the engine."""

    def run(self, lm: LM, options: SpeedOptions, context: TaskContext) -> TaskResult:
        """No metric has a value where the model's logits are not finite.

        Raises:
            DataError: the model's maximum is shorter than the decoding run.
            EngineError: the engine generated fewer tokens than it was asked to.
        """
        if "requests" in lm.capabilities:
            load = Load(options.decode_prompt, options.new_tokens, options.batch_sizes, options.repeats)
            return measure(lm, load, context)
        context_len = options.decode_prompt + options.new_tokens
        if context_len > lm.max_seq_len:
            raise DataError(
                f"speed: decode_prompt + new_tokens = {context_len} is over the model's maximum of "
                f"{lm.max_seq_len}"
            )
        prefill = min(options.prefill_tokens, lm.max_seq_len - 1)
        lm.reserve(1, prefill + 1)
        lm.reserve(max(options.batch_sizes), context_len)
        runs = _Runs(lm, options.repeats)
        steps = 1 + len(options.batch_sizes)
        metrics = runs.prefill(prefill)
        context.progress(1, steps, "measurements")
        for i, batch in enumerate(options.batch_sizes):
            metrics.append(runs.decode(options.decode_prompt, options.new_tokens, batch))
            context.progress(i + 2, steps, "measurements")
        notes = spread_note(metrics)
        if runs.broken:  # such numbers may come from another path through a kernel
            metrics = [replace(m, value=None, low=None, high=None, n=0, nonfinite=1.0) for m in metrics]
            notes = ("the model's logits are not finite: its speed says nothing",)
        longest = max(prefill + 1, context_len)
        facts = {"tokens_timed": runs.tokens_timed}
        return TaskResult(tuple(metrics), notes, facts=facts, context=longest, memory_rank=0)


class _Runs:
    """Timed generation on one engine, with the tokens that it gave counted."""

    def __init__(self, lm: LM, repeats: int) -> None:
        self._lm, self._repeats = lm, repeats
        self.broken = False
        self.tokens_timed: dict[str, int] = {}  # new tokens of one run, by protocol

    def prefill(self, prompt: int) -> list[Metric]:
        name = f"speed/p{prompt}"
        first = self._prepared(prompt, 1, 1)
        seconds = [first().seconds for _ in range(self._repeats)]
        self.tokens_timed[name] = 1
        ttft = Metric(
            "ttft_s",
            median(seconds),
            name,
            "s",
            low=min(seconds),
            high=max(seconds),
            n=len(seconds),
            better="lower",
            pairs="none",
            change="time",
            cost=True,
            heading="first token",
            group="time",
        )
        return [_median_rate("prefill_tok_s", prompt, seconds, name), ttft]

    def decode(self, prompt: int, new_tokens: int, batch: int) -> Metric:
        """Without a value where the machine's noise is larger than the time of the tokens."""
        name = f"speed/d{prompt}+{new_tokens}b{batch}"
        first = self._prepared(prompt, 1, batch)
        all_of_them = self._prepared(prompt, new_tokens, batch)
        pairs = [(first(), all_of_them()) for _ in range(self._repeats)]
        seconds = [long.seconds - short.seconds for short, long in pairs]
        tokens = pairs[0][1].tokens - pairs[0][0].tokens
        self.tokens_timed[name] = pairs[0][1].tokens
        if min(seconds) <= 0:
            return _rate("decode_tok_s", None, name, n=len(seconds))
        return _median_rate("decode_tok_s", tokens, seconds, name)

    def _prepared(self, prompt: int, new_tokens: int, batch: int) -> Callable[[], _Run]:
        """A warmed-up run. The same prompts on every engine."""
        rng = random.Random(0)
        vocab = self._lm.vocab_size
        prompts = [[rng.randrange(vocab) for _ in range(prompt)] for _ in range(batch)]
        sampling = Sampling(max_new_tokens=new_tokens, at_once=batch)

        def timed() -> _Run:
            start = time.perf_counter()
            done = list(self._lm.generate(prompts, sampling))
            seconds = time.perf_counter() - start
            tokens = sum(len(completion.ids) for completion in done)
            if any(completion.finish == "nonfinite" for completion in done):
                self.broken = True
            elif tokens != batch * new_tokens:
                raise EngineError(
                    f"speed: the engine generated {tokens} tokens in place of {batch} x {new_tokens}"
                )
            return _Run(seconds, tokens)

        timed()
        return timed


@dataclass(frozen=True)
class _Run:
    seconds: float
    tokens: int  # new ones, of all sequences


def spread_note(metrics: list[Metric]) -> tuple[str, ...]:
    """One note where the repeats of a rate lie further apart than SPREAD of their median. (hyperfine's
    test for outliers needs ten and more repeats.)"""
    spreads = {
        f"{m.name} {m.protocol.partition('/')[2]}": (m.high - m.low) / m.value
        for m in metrics
        if m.unit == "tok/s" and m.value and m.low is not None and m.high is not None
    }
    wide = {name: share for name, share in spreads.items() if share > SPREAD}
    if not wide:
        return ()
    worst = max(wide, key=wide.__getitem__)
    others = f" (and {len(wide) - 1} more)" if len(wide) > 1 else ""
    return (
        f"repeats of {worst} lie {100 * wide[worst]:.0f}% apart{others}: something else ran, or the "
        "runs are too short to time; measure again, or raise repeats",
    )


def _median_rate(name: str, tokens: int, seconds: list[float], protocol: str) -> Metric:
    rates = sorted(tokens / s for s in seconds)
    return _rate(name, median(rates), protocol, low=rates[0], high=rates[-1], n=len(rates))


def _rate(
    name: str,
    value: float | None,
    protocol: str,
    *,
    low: float | None = None,
    high: float | None = None,
    n: int,
) -> Metric:
    return Metric(
        name,
        value,
        protocol,
        "tok/s",
        low=low,
        high=high,
        n=n,
        better="higher",
        pairs="none",
        change="ratio",
        cost=True,
        heading=name.partition("_")[0],
        group="speed",
    )
