"""Continuous batching: how the llama.cpp engine generates.

A **lane** is a llama.cpp context whose sequences are its slots, each with one sample in it. All samples
that run in a lane get one token by one llama_decode; a finished one frees its slot at once. A prompt
with several samples is computed once, without its last token, in one of two more sequences, the
**holders**. Admitting a sample copies the holder and feeds that token together with the next tokens of
the others. While samples of one prompt still wait, the other holder is filled with the next prompt: its
tokens ride in the same llama_decode. A prompt with one sample is computed in its slot.

Every sequence has its own part of the cache. (In llama.cpp's "unified" one each token's attention
passes over the cells of all sequences.) llama.cpp takes sequences into one pass over the weights only
if their numbers follow each other, so those that run are always 0, 1, 2, ...: the last one moves where
another finished.

With two lanes the host draws tokens for the one while the device computes the other. ``Stop`` is asked
while the device computes the next token, which is thrown away where a sample came to its end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from qeval.engines.base import Completion, Ids, Sampling, Stop, seed_of
from qeval.engines.drawing import NONFINITE, uniforms
from qeval.llama.library import Context

HOLDERS = 2  # sequences of a lane beside its slots, where a prompt has several samples
_FEW = 16  # one in so many slots may wait for others, so that their prompts are computed together

Draw = Callable[[NDArray[np.float32], list[float]], list[int]]


class Work:
    """The samples that are in no slot yet, in the order of prompts."""

    def __init__(self, prompts: Sequence[Ids], sampling: Sampling) -> None:
        self.prompts = prompts
        self.sampling = sampling
        self._left = deque((i, deque(sampling.numbers)) for i in range(len(prompts)))

    def next(self, n: int) -> list[int]:
        """The first ``n`` prompts with samples left."""
        return [self._left[i][0] for i in range(min(n, len(self._left)))]

    def take(self) -> Slot:
        """A sample of the first prompt."""
        prompt, numbers = self._left[0]
        slot = Slot(prompt, numbers.popleft(), self.prompts[prompt], self.sampling)
        if not numbers:
            self._left.popleft()
        return slot


class Filling:
    """A prompt without its last token on its way into a sequence."""

    def __init__(self, prompt: int, ids: Ids) -> None:
        self.prompt = prompt
        self.tokens = np.asarray(ids[:-1], np.int32)
        self.done = 0

    @property
    def left(self) -> int:
        return len(self.tokens) - self.done


class Slot(Filling):
    """A sample in progress."""

    def __init__(self, prompt: int, sample: int, ids: Ids, sampling: Sampling) -> None:
        super().__init__(prompt, ids)
        self.sample = sample
        self.last = int(ids[-1])
        self.ids: list[int] = []
        self.ended = False  # its sequence may compute one more token all the same
        self.u: list[float] | None = None
        if sampling.temperature > 0:
            seed = seed_of(sampling.seed, ids, sample)
            self.u = uniforms(seed, sampling.max_new_tokens).tolist()

    def take(self, token: int, sampling: Sampling, limit: int) -> str | None:
        """The drawn token; the reason to finish, or None to go on."""
        if token == NONFINITE:
            return "nonfinite"
        if token in sampling.stop_ids:
            return "eos"
        self.ids.append(token)
        full = len(self.ids) >= sampling.max_new_tokens
        return "length" if full or len(self.tokens) + 1 + len(self.ids) >= limit else None

    def completion(self, finish: str) -> Completion:
        return Completion(self.prompt, self.sample, self.ids, finish)


@dataclass
class _Batch:
    """The arguments of ``Context.decode``, in pieces."""

    tokens: list[NDArray[np.int32]] = field(default_factory=list)
    positions: list[NDArray[np.int32]] = field(default_factory=list)
    sequences: list[NDArray[np.int32]] = field(default_factory=list)

    def add(
        self, tokens: NDArray[np.int32], positions: NDArray[np.int32], first: int, each: int
    ) -> None:
        """Tokens of one sequence (``each`` 0), or one of each sequence from ``first`` on (1)."""
        self.tokens.append(tokens)
        self.positions.append(positions)
        self.sequences.append(first + each * np.arange(len(tokens), dtype=np.int32))

    def arrays(self) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        return (
            np.concatenate(self.tokens),
            np.concatenate(self.positions),
            np.concatenate(self.sequences),
        )


class Lane:
    """Up to ``n_slots`` samples at once in a context of ``n_slots`` sequences, and HOLDERS more where
    prompts have several samples. ``limit`` is the most tokens a sequence may have; ``ahead`` runs
    llama_decode beside this thread (None: in it)."""

    def __init__(
        self, context: Context, n_slots: int, limit: int, work: Work, draw: Draw, ahead: Executor | None
    ) -> None:
        self._context, self._n_slots, self._limit = context, n_slots, limit
        self._work, self._draw, self._ahead = work, draw, ahead
        self._slots: list[Slot | None] = []  # by sequence; None: finished in this step
        self._next = np.zeros(n_slots, np.int32)  # the token that each feeds next, and where
        self._position = np.zeros(n_slots, np.int32)
        self._holders: dict[int, Filling] = {}  # by sequence
        self._has_holders = len(work.sampling.numbers) > 1
        self._running = 0  # of the step under way
        self._took: list[Slot] = []  # a token that ``Stop`` was not asked about yet
        self._step: Future[None] | None = None

    def begin(self) -> bool:
        """Start to compute the next token of all that run; False where nothing is left to do."""
        self._admit()
        running = sum(1 for _ in takewhile(lambda slot: slot and not slot.left, self._slots))
        batch = _Batch()
        batch.add(self._next[:running].copy(), self._position[:running].copy(), 0, 1)
        self._fill(batch, self._context.n_batch - running)
        tokens, positions, sequences = batch.arrays()
        if not len(tokens):
            return False
        outputs = (np.arange(len(tokens)) < running).astype(np.int8)
        self._running = running

        def step() -> None:
            self._context.decode(tokens, positions, sequences, outputs)
            self._context.synchronize()

        if self._ahead is None:
            step()
        else:
            self._step = self._ahead.submit(step)
        return True

    def end(self, stop: Stop | None) -> list[Completion]:
        """Wait for the step and give every sample its token. Those that came to their end."""
        if self._step is not None:
            self._step.result()
        n, done = self._running, []
        self._took = []
        if not n:
            return []
        slots = [slot for slot in self._slots[:n] if slot is not None]
        u = [slot.u[len(slot.ids)] if slot.u and not slot.ended else 0.0 for slot in slots]
        drawn = self._draw(self._context.logits(n), u)
        self._next[:n] = drawn
        self._position[:n] += 1
        for slot, token in zip(slots, drawn, strict=True):
            if slot.ended:
                continue
            finish = slot.take(token, self._work.sampling, self._limit)
            if finish is None:
                self._took.append(slot)
                continue
            if finish == "length" and stop is not None and stop(slot.ids):
                finish = "stop"
            slot.ended = True
            done.append(slot.completion(finish))
        return done

    def stopped(self, stop: Stop) -> list[Completion]:
        """Those whose last token is the end of a text."""
        found = [slot for slot in self._took if stop(slot.ids)]
        for slot in found:
            slot.ended = True
        return [slot.completion("stop") for slot in found]

    def drain(self) -> None:
        """Wait for the step, whatever became of it: its context is about to go."""
        if self._step is not None:
            self._step.exception()

    def _admit(self) -> None:
        """Put new samples where others ended, and after the last one."""
        gaps = [i for i, slot in enumerate(self._slots) if slot and slot.ended]
        for i in gaps:
            self._slots[i] = None
        if self._has_holders:
            for i in [*gaps, *range(len(self._slots), self._n_slots)]:
                if not self._admit_from_holder(i):
                    break
        if None in self._slots:
            self._close_gaps()
        if not self._has_holders:
            self._admit_alone()

    def _admit_from_holder(self, i: int) -> bool:
        """Put the next sample into sequence ``i``, if its prompt is computed."""
        self._hold()
        source = next(
            (s for s, held in self._holders.items() if held.prompt in self._work.next(1)), None
        )
        if source is None or self._holders[source].left:
            return False
        slot = self._work.take()
        slot.done = len(slot.tokens)
        if slot.done:
            self._context.copy(source, i)
        else:
            self._context.remove(i)
        self._place(i, slot)
        self._hold()
        return True

    def _hold(self) -> None:
        """Have the next prompts in the holders."""
        wanted = self._work.next(HOLDERS)
        self._holders = {s: held for s, held in self._holders.items() if held.prompt in wanted}
        for prompt in wanted:
            if all(held.prompt != prompt for held in self._holders.values()):
                sequence = min({self._n_slots, self._n_slots + 1} - set(self._holders))
                self._context.remove(sequence)
                self._holders[sequence] = Filling(prompt, self._work.prompts[prompt])

    def _admit_alone(self) -> None:
        """Have the next prompts computed in slots of their own."""
        free = self._n_slots - len(self._slots)
        if free < max(1, self._n_slots // _FEW):
            return
        for _ in self._work.next(free):
            self._context.remove(len(self._slots))
            self._place(len(self._slots), self._work.take())

    def _place(self, i: int, slot: Slot) -> None:
        self._slots[i : i + 1] = [slot]
        self._next[i], self._position[i] = slot.last, len(slot.tokens)

    def _close_gaps(self) -> None:
        """Move those that run into gaps before them, and those whose prompt is not computed yet after
        them."""
        slots = self._slots
        while None in slots:
            if slots[-1] is None:
                slots.pop()
                self._context.remove(len(slots))
                continue
            gap = slots.index(None)
            running = [i for i, slot in enumerate(slots) if i > gap and slot and not slot.left]
            source = running[-1] if running else len(slots) - 1
            self._context.copy(source, gap)
            slots[gap], slots[source] = slots[source], None
            self._next[gap], self._position[gap] = self._next[source], self._position[source]

    def _fill(self, batch: _Batch, room: int) -> None:
        """Prompts that are not computed yet, as far as there is room."""
        slots = ((i, slot) for i, slot in enumerate(self._slots) if slot is not None)
        for sequence, filling in (*slots, *self._holders.items()):
            n = min(filling.left, room)
            if n:
                positions = np.arange(filling.done, filling.done + n, dtype=np.int32)
                batch.add(filling.tokens[positions], positions, sequence, 0)
                filling.done += n
                room -= n


def run(lanes: Sequence[Lane], stop: Stop | None, *, ahead: bool) -> Iterator[Completion]:
    """All samples, as they come to their end. ``ahead``: the lanes compute beside this thread."""
    under_way = deque(lane for lane in lanes if lane.begin())
    try:
        while under_way:
            lane = under_way.popleft()
            done = lane.end(stop)
            if stop is not None and not ahead:
                done += lane.stopped(stop)
            if lane.begin():
                under_way.append(lane)
            if stop is not None and ahead:
                done += lane.stopped(stop)
            yield from done
    finally:
        for lane in lanes:
            lane.drain()
