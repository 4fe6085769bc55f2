"""`speed` of a server, seen from outside: how long an answer takes, and what all answers come to.

For each of ``batch_sizes`` so many requests are kept under way. Each is a prompt of its own of about
``decode_prompt`` tokens, so that no cache of the server has it, and up to ``new_tokens`` greedy ones;
exactly as many where the server takes ``ignore_eos``. ``repeats`` times the batch size of them are
timed, at the least ``repeats`` times 8, after as many as a batch to warm up. Latency is from sending a
request to the last byte of its answer; tokens a second are all new tokens over the time of all
requests. Nothing is streamed, so there is no time to first token.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qeval.core.record import Metric
from qeval.engines.base import LM, Ids, Request
from qeval.models.endpoint import is_text
from qeval.tasks.base import TaskContext, TaskResult

if TYPE_CHECKING:
    from qeval.models.tokenizer import Tokenizer

_LEAST = 8  # requests of a repeat
_WORDS = ("the", "of", "and", "to", "in", "was", "for", "on", "that", "with", "as", "it", "by", "at")


@dataclass(frozen=True)
class Load:
    """What is asked of a server."""

    decode_prompt: int
    new_tokens: int
    batch_sizes: Sequence[int]
    repeats: int


def measure(lm: LM, options: Load, context: TaskContext) -> TaskResult:
    """Latency at p50 and p95, and tokens a second, for each batch size."""
    rng = random.Random(time.time_ns())  # a server that was asked before must not remember
    metrics: list[Metric] = []
    facts: dict[str, dict[str, float | None]] = {}
    for i, at_once in enumerate(options.batch_sizes):
        n = options.repeats * max(at_once, _LEAST)
        prompts = [_prompt(context.tokenizer, options.decode_prompt, rng) for _ in range(n + at_once)]
        list(lm.requests(prompts[n:], options.new_tokens, at_once))
        began = time.perf_counter()
        found = list(lm.requests(prompts[:n], options.new_tokens, at_once))
        seconds = time.perf_counter() - began
        name = f"speed/served/d{options.decode_prompt}+{options.new_tokens}b{at_once}"
        metrics += [*_latency(found, name), _rate(found, seconds, name)]
        facts[name] = {
            "requests": n,
            "prompt_tokens": _mean([r.prompt_tokens for r in found]),
            "new_tokens": _mean([r.new_tokens for r in found]),
        }
        context.progress(i + 1, len(options.batch_sizes), "measurements")
    notes = _notes([fact["new_tokens"] for fact in facts.values()], options.new_tokens)
    return TaskResult(tuple(metrics), notes, facts={"served": facts}, memory_rank=0)


def _prompt(tokenizer: Tokenizer, n_tokens: int, rng: random.Random) -> Ids:
    """A prompt of ``n_tokens`` ids, or of as many short words where there is no tokenizer."""
    words = " ".join(rng.choice(_WORDS) for _ in range(n_tokens))
    ids = tokenizer.prompt(f"{rng.randrange(10**6)} {words}")
    return ids if is_text(ids) else ids[:n_tokens]


def _latency(found: list[Request], name: str) -> list[Metric]:
    import numpy as np

    seconds = [request.seconds for request in found]
    return [
        Metric(
            f"latency_p{percent}_s",
            float(np.percentile(seconds, percent)),
            name,
            "s",
            low=min(seconds),
            high=max(seconds),
            n=len(seconds),
            better="lower",
            pairs="none",
            change="time",
            cost=True,
            heading=f"latency p{percent}",
            group="time",
        )
        for percent in (50, 95)
    ]


def _rate(found: list[Request], seconds: float, name: str) -> Metric:
    """Without a value where the server does not count its tokens."""
    known = [request.new_tokens for request in found if request.new_tokens is not None]
    return Metric(
        "served_tok_s",
        sum(known) / seconds if len(known) == len(found) else None,
        name,
        "tok/s",
        n=len(found),
        better="higher",
        pairs="none",
        change="ratio",
        cost=True,
        heading="served",
        group="speed",
    )


def _mean(counts: list[int | None]) -> float | None:
    known = [count for count in counts if count is not None]
    return sum(known) / len(known) if known else None


def _notes(new: list[float | None], asked: int) -> tuple[str, ...]:
    fewest = min((n for n in new if n is not None), default=float(asked))
    if fewest >= asked:
        return ()
    return (
        f"answers of {fewest:.1f} tokens on average where {asked} were asked for: the server ends them "
        "itself",
    )
