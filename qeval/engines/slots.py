"""Continuous batching over a fixed number of slots: how the llama.cpp engine generates.

Every slot is one llama.cpp sequence with one sample in it. One more sequence, the holder, keeps the
cache of the current prompt without its last token; admitting a sample copies the holder (no data moves
in a unified cache: the cells are shared) and feeds the prompt's last token together with the next
tokens of all other slots, in one llama_decode. A finished sample frees its slot at once.

So a prompt is computed once for all of its samples, and the batch stays full until the last prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qeval.engines.base import Completion, Ids, Sampling, Stop, seed_of
from qeval.llama.library import Context, library


class Sampler:
    """One sample's llama.cpp sampler chain: greedy, or temperature, top_p and a seeded draw."""

    def __init__(self, sampling: Sampling, prompt: Ids, sample: int) -> None:
        self._lib = lib = library()
        self.chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        for part in _parts(lib, sampling, seed_of(sampling.seed, prompt, sample)):
            lib.llama_sampler_chain_add(self.chain, part)  # the chain frees its parts

    def draw(self, context: Context, row: int, logits: NDArray[np.float32]) -> int | None:
        """The next token, from the logits [vocab] of the batch's ``row``-th token; None where they are
        not finite: NaN, infinity or nothing at all."""
        if not np.isfinite(logits.max()):
            return None
        return int(self._lib.llama_sampler_sample(self.chain, context.handle, row))

    def close(self) -> None:
        self._lib.llama_sampler_free(self.chain)


def _parts(lib: Any, sampling: Sampling, seed: int) -> list[object]:
    if sampling.temperature == 0:
        return [lib.llama_sampler_init_greedy()]
    parts = [lib.llama_sampler_init_temp(sampling.temperature)]
    if sampling.top_p < 1:
        parts.append(lib.llama_sampler_init_top_p(sampling.top_p, 1))
    return [*parts, lib.llama_sampler_init_dist(seed)]


class _Slot:
    """A sample in progress: ``next_id`` goes to ``position`` in the coming batch."""

    def __init__(self, sequence: int, prompt: int, sample: int, ids: Ids, sampling: Sampling) -> None:
        self.sequence, self.prompt, self.sample = sequence, prompt, sample
        self.next_id, self.position = ids[-1], len(ids) - 1
        self.ids: list[int] = []
        self.sampler = Sampler(sampling, ids, sample)

    def accept(
        self, token: int | None, sampling: Sampling, limit: int, stop: Stop | None
    ) -> str | None:
        """Take the drawn token; the reason to finish, or None to go on."""
        if token is None:
            return "nonfinite"
        if token in sampling.stop_ids:
            return "eos"
        self.ids.append(token)
        self.next_id, self.position = token, self.position + 1
        if stop is not None and stop(self.ids):
            return "stop"
        full = len(self.ids) >= sampling.max_new_tokens or self.position + 1 >= limit
        return "length" if full else None


class Slots:
    """Runs all samples of all prompts through ``n_slots`` slots of ``context``.

    ``context`` has ``n_slots + 1`` sequences; ``limit`` is the most tokens a sequence may have.
    """

    def __init__(
        self, context: Context, n_slots: int, limit: int, sampling: Sampling, pool: Executor
    ) -> None:
        self._context = context
        self._holder = n_slots
        self._free = list(range(n_slots))
        self._limit = limit
        self._sampling = sampling
        self._pool = pool
        self._active: list[_Slot] = []

    def run(self, prompts: Sequence[Ids], stop: Stop | None) -> Iterator[Completion]:
        waiting = self._admissions(prompts)
        try:
            while True:
                while self._free and (slot := next(waiting, None)) is not None:
                    self._active.append(slot)
                if not self._active:
                    return
                yield from self._step(stop)
        finally:
            for slot in self._active:
                slot.sampler.close()

    def _admissions(self, prompts: Sequence[Ids]) -> Iterator[_Slot]:
        """One slot after the other, ready to decode; computes a prompt when its first sample is asked
        for. The caller has made sure that a slot is free."""
        for index, ids in enumerate(prompts):
            for i, sample in enumerate(self._sampling.numbers):
                if i == 0:
                    self._hold(ids[:-1])
                sequence = self._free.pop(0)
                if len(ids) > 1:
                    self._context.copy(self._holder, sequence)
                yield _Slot(sequence, index, sample, ids, self._sampling)

    def _hold(self, ids: Ids) -> None:
        """Replace the holder's content by ``ids``."""
        context = self._context
        context.remove(self._holder)
        tokens = np.asarray(ids, np.int32)
        for start in range(0, len(tokens), context.n_batch):
            part = tokens[start : start + context.n_batch]
            positions = np.arange(start, start + len(part), dtype=np.int32)
            sequences = np.full(len(part), self._holder, np.int32)
            context.decode(part, positions, sequences, np.zeros(len(part), np.int8))

    def _step(self, stop: Stop | None) -> Iterator[Completion]:
        """One token for every active slot."""
        slots = self._active
        self._context.decode(
            np.array([slot.next_id for slot in slots], np.int32),
            np.array([slot.position for slot in slots], np.int32),
            np.array([slot.sequence for slot in slots], np.int32),
            np.ones(len(slots), np.int8),
        )
        self._context.synchronize()  # so that the samplers only read, from several threads
        logits = self._context.logits(len(slots))

        def draw(row: int) -> int | None:
            return slots[row].sampler.draw(self._context, row, logits[row])

        drawn = list(self._pool.map(draw, range(len(slots))))
        self._active, finished = [], []
        for slot, token in zip(slots, drawn, strict=True):
            finish = slot.accept(token, self._sampling, self._limit, stop)
            if finish is None:
                self._active.append(slot)
            else:
                self._release(slot)
                finished.append(Completion(slot.prompt, slot.sample, slot.ids, finish))
        yield from finished

    def _release(self, slot: _Slot) -> None:
        slot.sampler.close()
        self._context.remove(slot.sequence)
        self._free.append(slot.sequence)
