"""The baseline's predictions on the disk: exact enough, whole or not at all."""

import os
import shutil

import numpy as np
import pytest

from qeval.core.errors import StoreError
from qeval.store.references import References, decoded, encoded
from qeval.tasks.divergence.tokens import compared

KEY = "ab" * 32


def logits(n=200, vocabulary=2000, seed=0):
    """Peaked as those of a language model are: Gumbel's tail under a few candidates."""
    rng = np.random.default_rng(seed)
    p = 2.2 * rng.standard_normal((n, vocabulary)) - 8
    p[np.arange(n)[:, None], rng.integers(0, vocabulary, (n, 8))] += rng.uniform(4, 18, (n, 8))
    return p.astype(np.float32), rng.integers(0, vocabulary, n)


@pytest.mark.parametrize("change", [0.0, 0.02, 0.3, 1.0])
def test_the_mean_divergence_is_kept_to_a_millionth(change):
    p, targets = logits()
    q = p + (change * np.random.default_rng(1).standard_normal(p.shape)).astype(np.float32)
    exact, kept = compared(p, q, targets), compared(decoded(encoded(p)), q, targets)
    assert abs(exact.kld.mean() - kept.kld.mean()) < 1e-6
    assert np.abs(exact.kld - kept.kld).max() < 1e-3


def test_sixteen_bits_of_a_float_are_worse():
    p, targets = logits()
    kept, half = decoded(encoded(p)), p.astype(np.float16).astype(np.float32)
    assert compared(kept, p, targets).kld.mean() < compared(half, p, targets).kld.mean() / 10


def test_largest_first_and_order_are_kept():
    p, _ = logits(20)
    back = decoded(encoded(p))
    assert np.array_equal(back.argmax(-1), p.argmax(-1))
    depth = p.max(-1, keepdims=True) - p
    near = depth < 10
    assert np.abs(-back - depth)[near].max() < 4e-4


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_come_back_as_such(bad):
    p, _ = logits(4)
    p[2, 5] = bad
    back = decoded(encoded(p))
    assert np.isnan(back[2]).all() and np.isfinite(back[[0, 1, 3]]).all()


def test_a_vocabulary_of_equal_logits():
    assert not decoded(encoded(np.full((2, 3), -7, np.float32))).any()


def test_what_was_written_is_read(tmp_path):
    p, _ = logits(30)
    store = References(tmp_path)
    assert store.find(KEY) is None
    with store.writing(KEY, 30, 2000) as writer:
        writer.append(p[:7])
        assert store.find(KEY) is None
        writer.append(p[7:])
    found = store.find(KEY)
    assert (found.rows, found.vocabulary) == (30, 2000)
    assert np.array_equal(found.read(5, 4), encoded(p)[5:9])
    assert [f.name for f in store.folder.iterdir()] == [KEY]


def test_half_a_reference_is_none(tmp_path):
    p, _ = logits(10)
    store = References(tmp_path)
    with pytest.raises(KeyboardInterrupt), store.writing(KEY, 10, 2000) as writer:
        writer.append(p[:5])
        raise KeyboardInterrupt
    with pytest.raises(AssertionError, match="5 of 10 rows"), store.writing(KEY, 10, 2000) as writer:
        writer.append(p[:5])
    assert store.find(KEY) is None and list(store.folder.iterdir()) == []
    with store.writing(KEY, 10, 2000) as writer:
        writer.append(p)
    os.truncate(store.folder / KEY / "codes", 100)
    assert store.find(KEY) is None
    with store.writing(KEY, 10, 2000) as writer:
        writer.append(p)
    assert store.find(KEY) is not None


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with (
        pytest.raises(StoreError, match=r"take .* and 1000 .*free: set `limit`"),
        References(tmp_path).writing(KEY, 10, 2000),
    ):
        pass
    monkeypatch.undo()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StoreError, match="disk"), References(tmp_path).writing(KEY, 10, 2000) as writer:
        writer.append(logits(10)[0])
    assert list((tmp_path / "references").iterdir()) == []


def test_what_is_kept_can_be_listed_and_removed(tmp_path):
    store = References(tmp_path)
    assert store.sizes() == {} and store.remove() == 0
    with store.writing(KEY, 10, 2000) as writer:
        writer.append(logits(10)[0])
    [(folder, size)] = store.sizes().items()
    assert folder.name == KEY and size > 2 * 10 * 2000
    assert store.remove(days=1) == 0 and store.find(KEY) is not None
    assert store.remove() == size and store.find(KEY) is None


def test_one_that_another_run_wrote_meanwhile_stays(tmp_path):
    store = References(tmp_path)
    with store.writing(KEY, 10, 2000) as slow:
        with store.writing(KEY, 10, 2000) as fast:
            fast.append(logits(10)[0])
        inode = (store.folder / KEY).stat().st_ino
        slow.append(logits(10)[0])
    assert (store.folder / KEY).stat().st_ino == inode
    assert [f.name for f in store.folder.iterdir()] == [KEY]
