"""Two models' predictions of the same tokens, compared in float64.

p is the baseline's distribution over the vocabulary, q the row's. For each predicted token:

    kld        sum_v p_v (log p_v - log q_v), nats: KL(p || q)
    overlap    sum_v min(p_v, q_v): the share of tokens that a perfect sampler of one could keep for the
               other (the acceptance rate of speculative decoding; EAR)
    same_top   whether both have the same most likely token
    top        max_v p_v, how sure the baseline was
    delta_p    q - p of the token that came
    nll_p, nll_q  of the token that came, nats

One function for numpy's arrays and torch's tensors, on whatever device they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from qeval.engines.base import Logits

_AT_ONCE = 2**21  # float64 entries of a piece: 16 MiB, of which there are about six
_AT_ONCE_GPU = 2**26


@dataclass(frozen=True)
class Tokens:
    """Arrays [n] of float64, one entry a predicted token; NaN where a logit was not finite."""

    kld: NDArray[np.float64]
    overlap: NDArray[np.float64]
    same_top: NDArray[np.float64]  # 0 or 1
    top: NDArray[np.float64]
    delta_p: NDArray[np.float64]
    nll_p: NDArray[np.float64]
    nll_q: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.kld)

    @staticmethod
    def joined(parts: list[Tokens]) -> Tokens:
        none = np.empty(0)
        return Tokens(
            *(np.concatenate([none, *(getattr(p, f.name) for p in parts)]) for f in fields(Tokens))
        )


def compared(p: Logits, q: Logits, targets: NDArray[np.int64], pool: Executor | None = None) -> Tokens:
    """Compare logits [n, vocabulary] that predict ``targets`` [n]. Where one vocabulary has more
    entries than the other (rows that pad it to a round number), both are cut to the common ones.

    Args:
        pool: threads for the pieces of numpy's arrays, which leave the interpreter's lock.

    Raises:
        ValueError: a target is not among the common entries.
    """
    common = min(p.shape[-1], q.shape[-1])
    if len(targets) and int(targets.max()) >= common:
        raise ValueError(f"token {int(targets.max())} is not among the {common} that both models have")
    if isinstance(p, np.ndarray) and isinstance(q, np.ndarray):
        rows = max(1, _AT_ONCE // common)
        pieces = [slice(i, i + rows) for i in range(0, len(targets), rows)]
        run = map if pool is None else pool.map
        return Tokens.joined(
            list(run(lambda s: _numpy(p[s, :common], q[s, :common], targets[s]), pieces))
        )
    return Tokens.joined(list(_torch_pieces(p, q, targets, common)))


def _torch_pieces(p: Logits, q: Logits, targets: NDArray[np.int64], common: int) -> Iterator[Tokens]:
    import torch

    device = next(x.device for x in (q, p) if isinstance(x, torch.Tensor))
    rows = max(1, (_AT_ONCE if device.type == "cpu" else _AT_ONCE_GPU) // common)
    wanted = torch.from_numpy(targets).to(device)
    with torch.inference_mode():
        for i in range(0, len(targets), rows):
            a, b = (torch.as_tensor(x[i : i + rows, :common], device=device).double() for x in (p, q))
            yield _torch(a, b, wanted[i : i + rows])


def _numpy(p: Logits, q: Logits, targets: NDArray[np.int64]) -> Tokens:
    assert isinstance(p, np.ndarray) and isinstance(q, np.ndarray)
    with np.errstate(all="ignore"):  # NaN and inf become NaN below
        log_p, log_q = (_log_softmax(x) for x in (p, q))
        prob_p, prob_q = np.exp(log_p), np.exp(log_q)
        nll_p, nll_q = (-x[np.arange(len(targets)), targets] for x in (log_p, log_q))
        same = log_p.argmax(-1) == log_q.argmax(-1)
        top, overlap = prob_p.max(-1), np.minimum(prob_p, prob_q).sum(-1)
        log_p -= log_q
        kld = np.einsum("nv,nv->n", prob_p, log_p)
        return _checked(
            kld, overlap, same.astype(float), top, np.exp(-nll_q) - np.exp(-nll_p), nll_p, nll_q
        )


def _log_softmax(logits: NDArray[np.float32] | NDArray[np.float64]) -> NDArray[np.float64]:
    x: NDArray[np.float64] = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    x -= np.log(np.exp(x).sum(-1, keepdims=True))
    return x


def _torch(p: torch.Tensor, q: torch.Tensor, targets: torch.Tensor) -> Tokens:
    import torch

    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    prob_p, prob_q = log_p.exp(), log_q.exp()
    nll_p, nll_q = (-x.gather(-1, targets[:, None])[:, 0] for x in (log_p, log_q))
    same = (log_p.argmax(-1) == log_q.argmax(-1)).double()
    top, overlap = prob_p.amax(-1), torch.minimum(prob_p, prob_q).sum(-1)
    kld = (prob_p * log_p.sub_(log_q)).sum(-1)
    found = torch.stack([kld, overlap, same, top, (-nll_q).exp() - (-nll_p).exp(), nll_p, nll_q])
    return _checked(*found.cpu().numpy())


def _checked(*columns: NDArray[np.float64]) -> Tokens:
    """All NaN for a token of which one number is not finite."""
    table = np.stack(columns)  # [7, n]
    table[:, ~np.isfinite(table).all(0)] = np.nan
    return Tokens(*table)
