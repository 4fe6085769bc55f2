"""Tokens drawn from logits against the definition by a sort of the vocabulary, and against softmax."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qeval.engines import drawing
from qeval.engines.drawing import NONFINITE, cut, draw, draw_rows, uniforms


def by_sorting(p: np.ndarray, top_p: float) -> np.ndarray:
    """The ids of the nucleus: a token is in it while those before it have less than top_p."""
    order = np.argsort(-p, kind="stable")
    up_to = np.cumsum(p[order], dtype=np.float64)
    before = np.concatenate([[0], up_to[:-1]])
    return np.sort(order[before < top_p * p.sum(dtype=np.float64)])


def logits_of(kind: str, vocab: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = {
        "flat": lambda: rng.standard_normal(vocab),
        "peaked": lambda: 8 * rng.standard_normal(vocab),
        "ties": lambda: rng.integers(0, 3, vocab),
        "equal": lambda: np.zeros(vocab),
        "one": lambda: np.where(np.arange(vocab) == vocab // 2, 50.0, 0.0),
        "barred": lambda: np.where(rng.random(vocab) < 0.5, rng.standard_normal(vocab), -np.inf),
    }[kind]()
    values[0] = max(values[0], 0.0)  # something is left
    return values.astype(np.float32)


KINDS = ["flat", "peaked", "ties", "equal", "one", "barred"]


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    vocab=st.integers(1, 600),
    seed=st.integers(0, 9),
    top_p=st.sampled_from([1e-6, 0.05, 0.5, 0.95, 0.999]),
)
def test_the_nucleus_is_that_of_a_sort(kind, vocab, seed, top_p):
    logits = logits_of(kind, vocab, seed)
    p = np.exp(logits - logits.max())
    kept = p.copy()
    cut(kept, top_p)
    assert np.array_equal(np.flatnonzero(kept), by_sorting(p, top_p))
    assert (kept[kept > 0] == p[kept > 0]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top_p", [0.3, 0.95])
def test_the_nucleus_of_a_large_vocabulary(kind, top_p, monkeypatch):
    """The sample brackets the last token; where it does not, everything is sorted."""
    logits = logits_of(kind, 49152, 1)
    p = np.exp(logits - logits.max())
    for stride in (16, 4096):  # the second samples too little to bracket anything
        monkeypatch.setattr(drawing, "_STRIDE", stride)
        kept = p.copy()
        cut(kept, top_p)
        assert np.array_equal(np.flatnonzero(kept), by_sorting(p, top_p))


def test_only_a_part_of_a_large_vocabulary_is_sorted():
    logits = logits_of("flat", 49152, 2)
    p = np.exp(logits - logits.max())
    above, middle = drawing._around(p, float(p.sum()), 0.95 * float(p.sum()))
    assert above > 0 and len(middle) < len(p) / 4


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    vocab=st.integers(1, 900),
    u=st.floats(0, 1, exclude_max=True),
    temperature=st.sampled_from([0.1, 0.8, 2.0]),
    top_p=st.sampled_from([0.5, 0.95, 1.0]),
)
def test_a_token_is_where_u_falls_in_the_order_of_ids(kind, vocab, u, temperature, top_p):
    logits = logits_of(kind, vocab, 3)
    p = np.exp((logits - logits.max()) * np.float32(1 / temperature))
    ids = by_sorting(p, top_p) if top_p < 1 else np.flatnonzero(p)
    up_to = np.cumsum(p[ids], dtype=np.float64)
    found = draw(logits, temperature, top_p, u)
    assert found in ids
    place = int(np.searchsorted(ids, found))
    slack = 1e-12 * up_to[-1]
    assert up_to[place] > u * up_to[-1] - slack
    assert place == 0 or up_to[place - 1] <= u * up_to[-1] + slack


@pytest.mark.parametrize(("temperature", "top_p"), [(0.8, 1.0), (1.3, 0.9)])
def test_draws_follow_softmax(temperature, top_p):
    """Chi-square of 20,000 draws at 40 tokens: over 90 once in 200,000 runs at most (39 degrees)."""
    logits, n = logits_of("flat", 40, 4), 20_000
    p = np.exp((logits - logits.max()) / temperature).astype(np.float64)
    ids = by_sorting(p, top_p)
    expected = n * p[ids] / p[ids].sum()
    found = np.bincount([draw(logits, temperature, top_p, u) for u in uniforms(5, n)], minlength=40)
    assert found.sum() == found[ids].sum()
    assert (np.square(found[ids] - expected) / expected).sum() < 90


@pytest.mark.parametrize("n_threads", [1, 3, 50])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_rows_are_drawn_one_by_one_whatever_the_threads(n_threads, temperature):
    logits = np.stack([logits_of("flat", 300, seed) for seed in range(11)])
    logits[3, 7], logits[4] = math.nan, -np.inf
    logits[5, 9] = math.inf
    logits[6, 20] = logits[6, 30] = 9.0  # the first of the largest
    before, u = logits.copy(), uniforms(1, 11).tolist()
    with ThreadPoolExecutor(4) as pool:
        found = draw_rows(logits, temperature, 0.9, u, pool, n_threads)
    assert np.array_equal(logits, before, equal_nan=True)
    assert found[3:6] == [NONFINITE] * 3
    fine = [i for i in range(11) if i not in (3, 4, 5)]
    if temperature:
        assert [found[i] for i in fine] == [draw(logits[i], temperature, 0.9, u[i]) for i in fine]
    else:
        assert [found[i] for i in fine] == logits[fine].argmax(1).tolist() and found[6] == 20
