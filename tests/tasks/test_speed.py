"""Speed: what is timed, with an engine whose clock is known."""

import time

import pytest

from qeval.core.artifact import ModelRef
from qeval.core.errors import DataError, EngineError
from qeval.core.record import Metric
from qeval.data.datasets import DataSource
from qeval.engines.base import Completion
from qeval.tasks.base import TaskContext
from qeval.tasks.speed import Speed, SpeedOptions, spread_note


class Clock:
    """Takes 10 ms a call and ``step`` seconds a token after the first, of a clock of its own."""

    capabilities = frozenset({"generate"})
    max_seq_len = 256
    vocab_size = 100
    finish = "length"

    def __init__(self, step=0.001):
        self.calls = []
        self.step = step
        self.now = 0.0

    def reserve(self, sequences, tokens):
        pass

    def tokens(self, asked):
        return asked

    def generate(self, prompts, sampling, stop=None):
        self.calls.append((len(prompts), len(prompts[0]), sampling))
        self.now += 0.01 + self.step * (sampling.max_new_tokens - 1)
        for i in range(len(prompts)):
            yield Completion(i, 0, [1] * self.tokens(sampling.max_new_tokens), self.finish)


@pytest.fixture
def lm(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock


def run(lm, tmp_path, **options):
    context = TaskContext(
        ModelRef("m", tmp_path, "x", "float32"), DataSource(), tmp_path, lambda *_: None
    )
    result = Speed().run(lm, SpeedOptions(**options), context)
    return {(m.name, m.protocol): m for m in result.metrics}, result


def test_rates_follow_from_two_times(lm, tmp_path):
    metrics, result = run(
        lm, tmp_path, prefill_tokens=100, decode_prompt=16, new_tokens=51, batch_sizes=[1, 4]
    )
    assert metrics["prefill_tok_s", "speed/p100"].value == pytest.approx(100 / 0.01)
    assert metrics["ttft_s", "speed/p100"].value == pytest.approx(0.01)
    assert metrics["decode_tok_s", "speed/d16+51b1"].value == pytest.approx(1000)
    assert metrics["decode_tok_s", "speed/d16+51b4"].value == pytest.approx(4000)
    assert result.context == 101
    assert {(n, at.at_once) for n, _, at in lm.calls} == {(1, 1), (4, 4)}
    assert all(s.stop_ids == () and s.temperature == 0 for _, _, s in lm.calls)


def test_the_tokens_that_were_timed_are_counted(lm, tmp_path):
    _, result = run(lm, tmp_path, prefill_tokens=100, new_tokens=51, batch_sizes=[1, 4])
    assert result.facts["tokens_timed"] == {
        "speed/p100": 1,
        "speed/d128+51b1": 51,
        "speed/d128+51b4": 204,
    }


def test_a_run_that_ends_early_is_no_number(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(lm, "tokens", lambda asked: min(asked, 7))
    with pytest.raises(EngineError, match="generated 28 tokens in place of 4 x 51"):
        run(lm, tmp_path, new_tokens=51, batch_sizes=[4])


def test_logits_that_are_not_finite_break_every_number(lm, tmp_path):
    """Those before it, too: prompts and batches differ, kernels are the same."""
    generate = lm.generate

    def sometimes(prompts, sampling, stop=None):
        lm.finish = "nonfinite" if len(prompts) == 4 else "length"
        return generate(prompts, sampling, stop)

    lm.generate = sometimes
    metrics, result = run(lm, tmp_path, batch_sizes=[1, 4])
    assert len(metrics) == 4
    for metric in metrics.values():
        assert (metric.value, metric.low, metric.nonfinite) == (None, None, 1.0)
    assert result.notes == ("the model's logits are not finite: its speed says nothing",)


def test_a_rate_lost_in_noise_is_no_number(lm, tmp_path):
    lm.step = 0.0
    metrics, _ = run(lm, tmp_path, new_tokens=2, batch_sizes=[1], decode_prompt=4, repeats=2)
    assert metrics["decode_tok_s", "speed/d4+2b1"].value is None


def test_prefill_is_cut_to_the_model_and_decoding_must_fit(lm, tmp_path):
    metrics, _ = run(lm, tmp_path, new_tokens=2, batch_sizes=[1], repeats=1)
    assert ("prefill_tok_s", "speed/p255") in metrics
    with pytest.raises(
        DataError, match=r"decode_prompt \+ new_tokens = 300 is over the model's maximum of 256"
    ):
        run(lm, tmp_path, decode_prompt=200, new_tokens=100)


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ([(100.0, 100.0, 100.0)], None),
        ([(96.0, 100.0, 105.0), (None, None, None)], None),
        ([(96.0, 100.0, 107.0)], "repeats of prefill_tok_s p0 lie 11% apart: something else ran"),
        ([(9.0, 10.0, 11.0), (7.0, 10.0, 11.0)], "prefill_tok_s p1 lie 40% apart (and 1 more): "),
    ],
)
def test_repeats_that_lie_apart_are_told(rates, words):
    """Over a tenth of the median between the slowest and the fastest."""
    metrics = [
        Metric("prefill_tok_s", value, f"speed/p{i}", "tok/s", low=low, high=high)
        for i, (low, value, high) in enumerate(rates)
    ]
    notes = spread_note(metrics)
    assert len(notes) == (words is not None)
    assert all(words in note for note in notes)
