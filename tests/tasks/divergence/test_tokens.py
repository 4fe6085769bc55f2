"""Divergence of two predictions: the definition in float64, laws, and both libraries alike."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, rel_entr

from qeval.tasks.divergence import tokens
from qeval.tasks.divergence.tokens import Tokens, compared

FIELDS = ("kld", "overlap", "same_top", "top", "delta_p", "nll_p", "nll_q")


def drawn(n=40, vocabulary=300, seed=0, spread=3.0, change=0.3):
    rng = np.random.default_rng(seed)
    p = (spread * rng.standard_normal((n, vocabulary))).astype(np.float32)
    q = p + (change * rng.standard_normal(p.shape)).astype(np.float32)
    return p, q, rng.integers(0, vocabulary, n)


def by_hand(p, q, targets) -> dict[str, np.ndarray]:
    log_p, log_q = (log_softmax(x.astype(np.float64), axis=-1) for x in (p, q))
    prob_p, prob_q, rows = np.exp(log_p), np.exp(log_q), np.arange(len(p))
    return {
        "kld": rel_entr(prob_p, prob_q).sum(-1),
        "overlap": np.minimum(prob_p, prob_q).sum(-1),
        "same_top": p.argmax(-1) == q.argmax(-1),
        "top": prob_p.max(-1),
        "delta_p": prob_q[rows, targets] - prob_p[rows, targets],
        "nll_p": -log_p[rows, targets],
        "nll_q": -log_q[rows, targets],
    }


@pytest.mark.parametrize("kind", ["numpy", "torch", "mixed"])
@pytest.mark.parametrize("vocabulary", [2, 300, 5000])
def test_every_number_is_its_definition(kind, vocabulary, monkeypatch):
    monkeypatch.setattr(tokens, "_AT_ONCE", 7 * vocabulary)  # in pieces
    p, q, targets = drawn(vocabulary=vocabulary)
    a = torch.from_numpy(p) if kind == "torch" else p
    b = q if kind == "numpy" else torch.from_numpy(q)
    found, expected = compared(a, b, targets), by_hand(p, q, targets)
    for name in FIELDS:
        np.testing.assert_allclose(
            getattr(found, name), expected[name], rtol=1e-9, atol=1e-12, err_msg=name
        )


def test_threads_change_nothing(monkeypatch):
    monkeypatch.setattr(tokens, "_AT_ONCE", 900)
    p, q, targets = drawn()
    alone = compared(p, q, targets)
    with ThreadPoolExecutor(3) as pool:
        together = compared(p, q, targets, pool)
    for name in FIELDS:
        assert np.array_equal(getattr(alone, name), getattr(together, name))


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_a_model_against_itself_is_zero(kind):
    p, _, targets = drawn()
    found = compared(kind(p), kind(p), targets)
    assert not found.kld.any() and not found.delta_p.any() and found.same_top.all()
    assert found.overlap == pytest.approx(1)


@given(st.integers(0, 1000), st.floats(0, 5), st.floats(-50, 50))
@settings(max_examples=30)
def test_laws(seed, change, shift):
    """Not negative; a constant on all logits changes nothing; Pinsker: KL >= 2 (1 - overlap)^2."""
    p, q, targets = drawn(6, 20, seed, change=change)
    found, moved = compared(p, q, targets), compared(p, q.astype(np.float64) + shift, targets)
    assert (found.kld >= -1e-12).all()
    assert (found.kld >= 2 * (1 - found.overlap) ** 2 - 1e-9).all()
    np.testing.assert_allclose(found.kld, moved.kld, atol=1e-9)


def test_a_padded_vocabulary_is_cut_to_the_common_entries():
    p, q, targets = drawn()
    wide = np.concatenate([q, np.full((len(q), 84), 50, np.float32)], axis=1)
    found, expected = compared(p, wide, targets), compared(p, q, targets)
    assert np.array_equal(found.kld, expected.kld)
    assert np.array_equal(compared(wide, p, targets).nll_p, expected.nll_q)
    with pytest.raises(ValueError, match="token 299 is not among the 200 that both models have"):
        compared(p, q[:, :200], np.full(len(p), 299))


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_a_token_that_is_not_finite_is_left_out_whole(kind, bad, side):
    p, q, targets = drawn()
    (p, q)[side][5, 7] = bad
    found, rest = compared(kind(p), kind(q), targets), np.arange(len(p)) != 5
    expected = compared(kind(p[rest]), kind(q[rest]), targets[rest])
    for name in FIELDS:
        assert np.isnan(getattr(found, name)[5])
        assert np.array_equal(getattr(found, name)[rest], getattr(expected, name))


def test_parts_are_joined_in_order():
    p, q, targets = drawn()
    whole = compared(p, q, targets)
    parts = [compared(p[s], q[s], targets[s]) for s in (slice(0, 3), slice(3, 3), slice(3, None))]
    assert np.array_equal(Tokens.joined(parts).kld, whole.kld)
