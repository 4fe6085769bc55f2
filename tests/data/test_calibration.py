"""Calibration windows: the drawing rules of the GPTQ family."""

import random

import pytest

from qeval.core.errors import DataError
from qeval.data.calibration import CalibrationOptions, draw, draw_from_documents
from qeval.data.datasets import Corpus, DataSource


class Chars:
    """A tokenizer of characters."""

    def encode(self, text, *, special=True):
        return [ord(c) for c in text]


@pytest.fixture
def source(monkeypatch):
    def make(*texts):
        load = lambda self, name: Corpus(name, texts, "0", "test")  # noqa: E731
        monkeypatch.setattr(DataSource, "load", load)
        return DataSource()

    return make


def test_offsets_in_the_joined_text(source):
    text = "".join(chr(33 + i % 90) for i in range(1000))
    options = CalibrationOptions(dataset="wikitext2-train", n_samples=5, seq_len=20, seed=3)
    windows = draw(source(text[:500], text[500:]), Chars(), options).windows
    rng = random.Random(3)
    joined = text[:500] + "\n\n" + text[500:]
    for window in windows:
        start = rng.randint(0, len(joined) - 20 - 1)
        assert "".join(map(chr, window)) == joined[start : start + 20]


def test_a_seed_repeats_and_another_differs(source):
    data = source("abcdefghij" * 100)
    drawn = lambda seed: draw(  # noqa: E731
        data, Chars(), CalibrationOptions(dataset="pydoc", n_samples=4, seq_len=8, seed=seed)
    )
    assert drawn(0) == drawn(0) != drawn(1)
    assert drawn(1).facts == {
        "dataset": "pydoc",
        "n_samples": 4,
        "seq_len": 8,
        "seed": 1,
        "n_tokens": 32,
        "text_sha256": "0",
    }


def test_documents_shorter_than_a_window_are_passed_over():
    corpus = Corpus("c4", ("short", "x" * 8, "y" * 9, "z" * 30), "0", "test")
    windows = draw_from_documents(corpus, Chars().encode, 50, 8, random.Random(0))
    assert {chr(w[0]) for w in windows} == {"y", "z"}
    assert {len(w) for w in windows} == {8}


def test_too_short_a_text_is_an_error_that_names_the_numbers(source):
    with pytest.raises(DataError, match="5 tokens are not enough for a window of 8"):
        draw(source("abcde"), Chars(), CalibrationOptions(dataset="pydoc", seq_len=8))
    with pytest.raises(DataError, match="5 tokens are not enough"):
        draw(source("abcde"), Chars(), CalibrationOptions(dataset="c4-train", seq_len=8))
