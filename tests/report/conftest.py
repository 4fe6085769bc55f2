"""Makers of records, and a table's worth of them."""

from __future__ import annotations

from collections.abc import Callable

import made_records
import pytest

from qeval.core.record import Metric, Record


@pytest.fixture
def record() -> Callable[..., Record]:
    return made_records.record


@pytest.fixture
def ppl() -> Callable[..., Metric]:
    return made_records.ppl


@pytest.fixture
def pass_at_1() -> Callable[..., Metric]:
    return made_records.pass_at_1


@pytest.fixture
def small(record, ppl, pass_at_1) -> list[Record]:
    """Four quantizations, three tasks: a good one, a bad one, a simulated one, failures and gaps."""
    windows = [3.0, 3.2, 2.8, 3.1, 2.9, 3.3]
    passed = [1.0, 0.0] * 10
    worse = [0.0] * 16 + [1.0, 0.0] * 2
    slightly = [w + 0.001 * (-1) ** i for i, w in enumerate(windows)]
    clearly = [w + 0.1 + 0.001 * i for i, w in enumerate(windows)]

    def speed(value: float) -> Metric:
        return Metric("decode_tok_s", value, "speed/b1", "tok/s", low=value - 1, high=value + 1, n=3)

    drift = "tokenizer drift: 2 tokens differ"
    return [
        record("none", "perplexity", [ppl(windows)]),
        record("none", "humaneval", [pass_at_1(passed)], limit=20),
        record("none", "speed", [speed(20.0)]),
        record("Q8_0", "perplexity", [ppl(slightly)], notes=(drift,)),
        record("Q8_0", "humaneval", [pass_at_1(passed)], limit=20),
        record("Q8_0", "speed", [speed(30.0)]),
        record("Q5_K_M", "perplexity", [ppl(clearly)], notes=(drift,)),
        record("Q5_K_M", "humaneval", [pass_at_1(worse)], limit=20),
        record("Q5_K_M", "speed", status="timeout", error="no result after 60 s\nlast lines"),
        record("RTN W4", "perplexity", [Metric("ppl", None, "gptq/wikitext2", n=6, nonfinite=0.5)]),
        record("RTN W4", "speed", [speed(19.0)]),
    ]
