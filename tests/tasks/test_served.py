"""`speed` of a server: the figures follow from the requests, whatever server it is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qeval.core.endpoint import Endpoint
from qeval.engines.base import Request
from qeval.models.endpoint import EndpointTokenizer, text_of
from qeval.tasks.served import Load, measure

ENDPOINT = Endpoint(base_url="http://h/v1", model="m")


class Asked:
    """Answers request i of a batch in i + 1 seconds, with ``new`` tokens."""

    def __init__(self, new: int | None = 4) -> None:
        self.new, self.batches = new, []

    def requests(self, prompts, new_tokens, at_once):
        self.batches.append((list(prompts), new_tokens, at_once))
        for i in range(len(prompts)):
            yield Request(float(i + 1), 7, self.new)


def run(lm: Asked, **options: object):
    load = Load(
        **{"decode_prompt": 6, "new_tokens": 4, "batch_sizes": [2, 16], "repeats": 3, **options}
    )
    context = SimpleNamespace(tokenizer=EndpointTokenizer(ENDPOINT, None), progress=lambda *_: None)
    return measure(lm, load, context)


def test_what_is_asked():
    lm = Asked()
    result = run(lm)
    assert [(len(prompts), new, at) for prompts, new, at in lm.batches] == [
        (2, 4, 2),  # to warm up
        (24, 4, 2),
        (16, 4, 16),
        (48, 4, 16),
    ]
    texts = [text_of(ids) for prompts, _, _ in lm.batches for ids in prompts]
    assert len(set(texts)) == len(texts) and {len(text.split()) for text in texts} == {7}
    assert result.notes == ()


def test_what_is_measured():
    result = run(Asked(), batch_sizes=[2])
    found = {m.name: m for m in result.metrics}
    assert {m.protocol for m in result.metrics} == {"speed/served/d6+4b2"}
    assert found["latency_p50_s"].value == pytest.approx(12.5)
    assert found["latency_p95_s"].value == pytest.approx(1 + 0.95 * 23)
    assert found["latency_p50_s"].low == 1 and found["latency_p50_s"].high == 24
    assert found["served_tok_s"].value > 0 and found["served_tok_s"].n == 24
    assert result.facts["served"]["speed/served/d6+4b2"] == {
        "requests": 24,
        "prompt_tokens": 7,
        "new_tokens": 4,
    }
    assert result.context is None


def test_a_server_that_counts_no_tokens_has_no_rate():
    found = {m.name: m.value for m in run(Asked(new=None), batch_sizes=[1]).metrics}
    assert found["served_tok_s"] is None and found["latency_p50_s"] is not None


def test_answers_that_end_early_are_told():
    (note,) = run(Asked(new=3)).notes
    assert note == (
        "answers of 3.0 tokens on average where 4 were asked for: the server ends them itself"
    )
