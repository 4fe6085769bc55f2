"""Draws tokens from logits in memory, a row a sequence, without sorting the vocabulary.

The rule is that of the torch engine: softmax(logits / temperature), cut to the nucleus (the fewest most
probable tokens that have ``top_p`` together; of equal ones the first ids), and of these the one that a
uniform number falls on, laid out in the order of ids. Temperature 0 takes the largest logit.

The nucleus is found without a sort of all. Tokens under ``(1 - top_p) / vocabulary`` are out: all of
them together have less than 1 - top_p. Where many are left, a sorted sample says between which two
values the last one lies, and only what lies there is sorted; what the sample said is checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

NONFINITE = -1
_BLOCK = 256  # neighbours that are passed over at once
_MANY, _STRIDE = 4096, 16  # a sample is worth its while from so many on; one in so many


def draw_rows(
    logits: Float32,
    temperature: float,
    top_p: float,
    u: Sequence[float],
    pool: Executor,
    n_threads: int,
) -> list[int]:
    """The next token of each row of logits [n, vocab], which are not changed; ``u`` [n] in [0, 1) (not
    read at temperature 0). NONFINITE where a row's largest logit is not finite: NaN, infinity, or
    nothing above -infinity."""
    step = -(-len(logits) // n_threads)

    def rows(start: int) -> list[int]:
        some = range(start, min(start + step, len(logits)))
        if temperature == 0:
            return [_greedy(logits[i]) for i in some]
        return [draw(logits[i], temperature, top_p, u[i]) for i in some]

    if step >= len(logits):
        return rows(0)
    return [token for part in pool.map(rows, range(0, len(logits), step)) for token in part]


def _greedy(logits: Float32) -> int:
    found = int(logits.argmax())  # the first of the largest, or of the NaN
    return found if np.isfinite(logits[found]) else NONFINITE


def draw(logits: Float32, temperature: float, top_p: float, u: float) -> int:
    """One token from logits [vocab], or NONFINITE."""
    top = logits.max()
    if not np.isfinite(top):
        return NONFINITE
    p = logits - top
    p *= np.float32(1 / temperature)
    np.exp(p, out=p)
    if top_p >= 1:
        return _falls_on(p, u)
    cut(p, top_p)
    return _falls_on(p, u)


def cut(p: Float32, top_p: float) -> None:
    """Leave of ``p`` [n] (not negative, of any sum) the fewest largest that have ``top_p`` of the sum
    (of equal ones the first); the others become 0."""
    total = float(_sums(p).sum())
    needed = top_p * total
    likely = p >= (total - needed) / len(p)
    above, middle = 0.0, p
    if np.count_nonzero(likely) > _MANY:
        above, middle = _around(p, total, needed)
    else:
        middle = p[np.flatnonzero(likely)]  # a mask would take three times as long
    falling = np.sort(middle)[::-1]
    count = int(np.searchsorted(above + np.cumsum(falling, dtype=np.float64), needed)) + 1
    last = falling[min(count, len(falling)) - 1]
    kept = p >= last
    too_many = int(np.count_nonzero(falling >= last)) - count
    if too_many > 0:
        kept[np.flatnonzero(p == last)[-too_many:]] = False
    p *= kept


def _around(p: Float32, total: float, needed: float) -> tuple[float, Float32]:
    """The sum of the largest, which is less than ``needed``, and the next ones, which fill it up."""
    sample = np.sort(p[::_STRIDE])
    up_to = np.cumsum(sample, dtype=np.float64)
    place = int(np.searchsorted(up_to, (1 - needed / total) * up_to[-1]))
    margin = 8 + 4 * int(place**0.5)
    low, high = sample[max(0, place - margin)], sample[min(len(sample) - 1, place + margin)]
    larger = p >= high
    above = float(_sums(p * larger).sum())
    middle = p[np.flatnonzero((p >= low) ^ larger)]
    if above < needed <= above + float(_sums(middle).sum()):
        return above, middle
    return 0.0, p


def _sums(values: Float32) -> Float64:
    """Sums of _BLOCK neighbours."""
    return np.add.reduceat(values, np.arange(0, len(values), _BLOCK), dtype=np.float64)


def _falls_on(p: Float32, u: float) -> int:
    """The first index whose cumulated ``p`` is over ``u`` of the sum."""
    up_to = np.cumsum(_sums(p))
    target = min(u * up_to[-1], np.nextafter(up_to[-1], 0))
    block = int(np.searchsorted(up_to, target, side="right"))
    part = p[block * _BLOCK : (block + 1) * _BLOCK]
    target -= up_to[block - 1] if block else 0.0
    found = int(np.searchsorted(np.cumsum(part, dtype=np.float64), target, side="right"))
    if found == len(part):  # the rounding of the block's sum
        found = int(np.flatnonzero(part)[-1])
    return block * _BLOCK + found


def uniforms(seed: int, n: int) -> NDArray[Any]:
    """The ``n`` numbers in [0, 1) of the sample whose seed this is, one for each token."""
    return np.random.default_rng(seed).random(n)
