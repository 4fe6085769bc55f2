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
from statistics import median
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from qeval.errors import DataError
from qeval.lm import LM, Sampling
from qeval.quant.base import Options
from qeval.record import Metric
from qeval.tasks.base import TaskContext, TaskResult

if TYPE_CHECKING:
    from qeval.data import DataSource

SPREAD = 0.1  # of the median, between the slowest and the fastest repeat


MOST = 10_000_000  # tokens
BatchSize = Annotated[int, Field(ge=1, le=65_536)]


class SpeedOptions(Options):
    prefill_tokens: int = Field(default=2048, ge=2, le=MOST)  # cut to what the model's maximum leaves
    decode_prompt: int = Field(default=128, ge=1, le=MOST)  # prompt tokens before decoding
    new_tokens: int = Field(default=64, ge=2, le=MOST)
    batch_sizes: list[BatchSize] = Field(default=[1, 8], min_length=1)  # of decoding
    repeats: int = Field(default=3, ge=1, le=1000)


class Speed:
    version: ClassVar[int] = 1
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
        """Raises DataError where the model's maximum is shorter than the decoding run."""
        context_len = options.decode_prompt + options.new_tokens
        if context_len > lm.max_seq_len:
            raise DataError(
                f"speed: decode_prompt + new_tokens = {context_len} is over the model's maximum of "
                f"{lm.max_seq_len}"
            )
        prefill = min(options.prefill_tokens, lm.max_seq_len - 1)
        steps = 1 + len(options.batch_sizes)
        first = _prepared(lm, prefill, 1, 1)
        seconds = [first() for _ in range(options.repeats)]
        context.progress(1, steps, "measurements")
        name = f"speed/p{prefill}"
        metrics = [
            _rate("prefill_tok_s", prefill, seconds, name),
            Metric(
                "ttft_s",
                median(seconds),
                name,
                "s",
                low=min(seconds),
                high=max(seconds),
                n=len(seconds),
            ),
        ]
        for i, batch in enumerate(options.batch_sizes):
            metrics.append(_decode(lm, options, batch))
            context.progress(i + 2, steps, "measurements")
        longest = max(prefill + 1, context_len)
        return TaskResult(tuple(metrics), spread_note(metrics), context=longest)


def _decode(lm: LM, options: SpeedOptions, batch: int) -> Metric:
    """None where the machine's noise is larger than the time of the tokens."""
    first = _prepared(lm, options.decode_prompt, 1, batch)
    all_of_them = _prepared(lm, options.decode_prompt, options.new_tokens, batch)
    seconds = [-first() + all_of_them() for _ in range(options.repeats)]
    name = f"speed/d{options.decode_prompt}+{options.new_tokens}b{batch}"
    if min(seconds) <= 0:
        return Metric("decode_tok_s", None, name, "tok/s", n=len(seconds))
    return _rate("decode_tok_s", batch * (options.new_tokens - 1), seconds, name)


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


def _rate(name: str, tokens: int, seconds: list[float], protocol: str) -> Metric:
    rates = sorted(tokens / s for s in seconds)
    return Metric(name, median(rates), protocol, "tok/s", low=rates[0], high=rates[-1], n=len(rates))


def _prepared(lm: LM, prompt: int, new_tokens: int, batch: int) -> Callable[[], float]:
    """A warmed-up run that returns its wall seconds. The same prompts on every engine."""
    rng = random.Random(0)
    prompts = [[rng.randrange(lm.vocab_size) for _ in range(prompt)] for _ in range(batch)]
    sampling = Sampling(max_new_tokens=new_tokens, at_once=batch)

    def timed() -> float:
        start = time.perf_counter()
        for _ in lm.generate(prompts, sampling):
            pass
        return time.perf_counter() - start

    timed()
    return timed
