"""What a sample is: its random numbers, the token that each of them falls on, and what ends it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qeval.engines.base import Completion, Ids, Sampling, Stop, seed_of

Uniforms = np.ndarray[Any, np.dtype[np.float64]]


@dataclass
class SequenceState:
    """A sequence in progress."""

    prompt: int
    sample: int
    ids: list[int]  # of the prompt
    u: Uniforms | None  # [max_new_tokens] in [0, 1); None: greedy
    most: int  # new tokens that it may have
    new: list[int] = field(default_factory=list)
    asked: int = 0  # tokens that steps have been started for
    finish: str | None = None

    def take(self, token: int | None, sampling: Sampling, stop: Stop | None) -> None:
        """The next token, None where the logits were not finite; may finish the sequence."""
        if token is None:
            self.finish = "nonfinite"
        elif token in sampling.stop_ids:
            self.finish = "eos"
        else:
            self.new.append(token)
            if stop is not None and stop(self.new):
                self.finish = "stop"
            elif len(self.new) >= self.most:
                self.finish = "length"

    @property
    def is_over(self) -> bool:
        """No step more is needed, though its last tokens may not have been read yet."""
        return self.finish is not None or self.asked >= self.most

    def completion(self) -> Completion:
        assert self.finish is not None
        return Completion(self.prompt, self.sample, self.new, self.finish)


def sequences(prompts: Sequence[Ids], sampling: Sampling, limit: int) -> Iterator[SequenceState]:
    """All samples of all prompts, the longest prompts first; none gets longer than ``limit`` tokens."""
    for i, ids in sorted(enumerate(prompts), key=lambda pair: -len(pair[1])):
        most = min(sampling.max_new_tokens, limit - len(ids))
        for sample in sampling.numbers:
            yield SequenceState(i, sample, list(ids), uniforms(sampling, ids, sample), most)


def uniforms(sampling: Sampling, ids: Ids, sample: int) -> Uniforms | None:
    """One number in [0, 1) for each new token of one sample of the prompt ``ids``; None: greedy."""
    if sampling.temperature == 0:
        return None
    seed = seed_of(sampling.seed, ids, sample)
    return np.random.default_rng(seed).random(sampling.max_new_tokens)


def draw(scores: Tensor, temperature: float, top_p: float, u: Tensor) -> Tensor:
    """One token of each row: the one that ``u`` falls on, the nucleus laid out in the order of ids.

    The nucleus is the fewest most probable tokens that have ``top_p`` together, as in transformers and
    llama.cpp; of equally probable ones the first. Args: scores [rows, vocab]; u [rows] in [0, 1),
    float64. Returns [rows].
    """
    p = (scores.float() / temperature).softmax(-1)
    if top_p < 1:
        ordered, order = p.sort(stable=True, dim=-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        p = torch.zeros_like(p).scatter_(-1, order, ordered.masked_fill_(before >= top_p, 0))
    up_to = p.double().cumsum(-1)
    total = up_to[:, -1:]
    target = torch.minimum(u[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    found = torch.searchsorted(up_to, target, right=True)
    return found[:, 0].clamp_(max=p.shape[-1] - 1)  # NaN falls on none
