"""From tokens to metrics."""

import math

import numpy as np
import pytest

from qeval.stats.series import mean_in_order
from qeval.tasks.divergence.summary import summarized
from qeval.tasks.divergence.tokens import compared


def windows(n=12, length=50, bad=()):
    rng, found = np.random.default_rng(0), []
    for i in range(n):
        p = (3 * rng.standard_normal((length, 40))).astype(np.float32)
        q = p + (0.3 * rng.standard_normal(p.shape)).astype(np.float32)
        if i in bad:
            q[3] = np.nan
        found.append(compared(p, q, rng.integers(0, 40, length)))
    return found


def named(metrics):
    return {m.name: m for m in metrics}


def test_the_mean_is_over_tokens_and_its_error_over_windows():
    parts = windows()
    found = named(summarized(parts, "llamacpp/text"))
    kld, tokens = found["kld"], np.concatenate([p.kld for p in parts])
    assert kld.value == pytest.approx(tokens.mean()) and kld.n == 12 and kld.nonfinite == 0
    assert kld.values == pytest.approx([p.kld.mean() for p in parts])
    assert (kld.low, kld.high) == pytest.approx(mean_in_order(kld.values).interval())
    assert found["kld_p99"].value == pytest.approx(np.quantile(tokens, 0.99))
    assert found["kld_median"].value < kld.value < found["kld_max"].value == tokens.max()
    same = np.concatenate([p.same_top for p in parts]).mean()
    assert found["same_top"].value == pytest.approx(same) and found["same_top"].high <= 1


def test_the_log_ratio_of_perplexities_is_paired():
    parts = windows()
    ratio = named(summarized(parts, "p"))["ln_ppl_ratio"]
    q, p = (np.array([getattr(w, c).mean() for w in parts]) for c in ("nll_q", "nll_p"))
    assert ratio.value == pytest.approx(math.log(math.exp(q.mean()) / math.exp(p.mean())))
    assert ratio.stderr < math.hypot(mean_in_order(q).stderr, mean_in_order(p).stderr)


def test_buckets_part_the_tokens():
    parts = windows()
    found = [m for m in summarized(parts, "p") if m.name.startswith("kld_top_")]
    assert sum(m.n for m in found) == 12 * 50
    whole = sum(m.n * m.value for m in found) / 600
    assert whole == pytest.approx(np.concatenate([p.kld for p in parts]).mean())


def test_tokens_that_are_not_finite_are_counted_and_left_out():
    found = named(summarized(windows(bad=(2, 5)), "p"))
    assert found["kld"].nonfinite == pytest.approx(2 / 600) and found["kld"].value is not None
    assert found["kld_p99"].n == 598


def test_nothing_finite_is_no_number():
    broken = compared(
        np.full((3, 4), np.nan, np.float32), np.zeros((3, 4), np.float32), np.zeros(3, int)
    )
    [kld] = summarized([broken], "p")
    assert kld.value is None and kld.nonfinite == 1


def test_one_window_has_no_interval():
    kld = named(summarized(windows(1), "p"))["kld"]
    assert kld.value > 0 and kld.low is None and kld.stderr is None
