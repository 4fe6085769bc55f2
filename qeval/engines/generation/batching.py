"""Continuous batching: how the torch engine generates, on CUDA and on the CPU.

Every sequence in progress has a slot of the cache (cache.py), row i of the batch is slot i. A step
feeds each row the token drawn last and draws the next one, on the device; the host reads the tokens a
step later, while the device computes the next step, and decides which sequences have ended. The slot
of one that has ended goes to the next sample at once; where none waits, the last row moves into it, so
that the rows stay together. A prompt is computed once for all of its samples, without its last token:
that is the first one that a sample feeds.

On CUDA a step is captured as a graph, for a few numbers of rows (half of the slots, a quarter, ..), and
replayed: a decode step is hundreds of small operations, and launching them takes longer than they run.
What cannot be captured runs as it is, and the record says so.

A sample has random numbers of its own (sampling.py), so its text does not depend on what runs beside
it, except for the rounding of matrix products.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qeval.core.machine import available_memory
from qeval.engines.base import Completion, Ids, Sampling, Stop
from qeval.engines.generation.attention import configs_of, decoding
from qeval.engines.generation.cache import NoSlots, Prefix, SlotCache, Step, has_triton
from qeval.engines.generation.fewer import Fewer
from qeval.engines.generation.sampling import SequenceState, draw, sequences
from qeval.engines.generation.transformers_loop import alone, distance, is_restless, rounding_allowed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_COLUMNS = 256  # of the cache: capacities, and what a captured step looks at, are multiples
_MOST = {"cpu": 64, "cuda": 512}  # rows
_SHARE = {"cpu": 0.5, "cuda": 0.9}  # of the free memory
_LONG, _SHORT, _STEPS = 512, 8, 4  # tokens of the two prompts of a trial, and of what follows them
_NOISE = 0.3  # from which a model's decoding is not trusted
_LOGITS = 16  # bytes a row and entry of the vocabulary: the logits, their floats, what sampling makes


def batcher_for(
    model: PreTrainedModel,
    limit: int,
    new_cache: Callable[[], object],
    rounded: Callable[[Tensor], Tensor] | None,
    prompts: Sequence[Ids],
    *,
    exact: bool,
    fewer: Fewer | None = None,
) -> Batcher | str:
    """A batcher that was seen to answer as the model does, or the reason why there is none.

    A long and a short prompt are decoded beside each other with a few given tokens, and the logits
    compared with those of one forward of each whole sequence (transformers_loop.distance). Rounding
    alone may set them apart further than usual, as with random weights in 4 bits: then they may be
    apart 1.5 times as far as the model's own decoding, one sequence through transformers' cache, is.
    ``exact``: the model computes in float32 and rounds nothing.
    """
    if is_restless(model):
        return "its positions are encoded otherwise beside a longer sequence"
    try:
        batcher = Batcher(model, limit, new_cache, rounded, fewer)
        both = max(prompts, key=len)[:_LONG], min(prompts, key=len)[:_SHORT]
        apart, allowed = batcher.trial(*both), rounding_allowed(model, exact)
        if apart >= allowed and (noise := batcher.noise(*both)) < _NOISE:
            allowed = max(allowed, 1.5 * noise)
    except torch.OutOfMemoryError:
        raise
    except NoSlots as err:
        return str(err)
    except Exception as err:  # each class has its own where it does not take this
        return f"{type(err).__name__}: {(str(err).splitlines() or [''])[0]}"
    return batcher if apart < allowed else f"logits apart by {apart:.2g} of their spread"


class Batcher:
    """Completes prompts with ``model``, whose sequences have at most ``limit`` tokens.

    Args:
        new_cache: makes the cache that a prompt is computed in.
        rounded: what happens to keys and values before they are kept (a row's ``kv_cache``).
        fewer: the model's, where it has one: a second would lay its weights out again.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        limit: int,
        new_cache: Callable[[], object],
        rounded: Callable[[Tensor], Tensor] | None = None,
        fewer: Fewer | None = None,
    ) -> None:
        self._model, self._limit = model, limit
        self._new_cache, self._rounded = new_cache, rounded
        self._device = model.device
        self._on_gpu = self._device.type == "cuda"
        self._pool: _Pool | None = None
        self._takes = frozenset(inspect.signature(model.forward).parameters)
        if "past_key_values" not in self._takes:
            raise NoSlots("it keeps no keys and values")
        self.largest_batch: int | None = None
        self.halved = 0  # times that memory ran out
        self._like = self.prefix([0])
        self._fewer = fewer or Fewer(model)

    @torch.inference_mode()
    def prefix(self, ids: Ids) -> Prefix:
        """Raises NoSlots."""
        cache = self._new_cache()
        keep = {"logits_to_keep": 1} if "logits_to_keep" in self._takes else {}
        tokens = torch.tensor([list(ids)], device=self._device)
        out = self._model(
            input_ids=tokens,
            use_cache=True,
            **keep,
            **({} if cache is None else {"past_key_values": cache}),
        )
        return Prefix(getattr(out, "past_key_values", None) if cache is None else cache)

    @torch.inference_mode()
    def trial(self, *prompts: Ids) -> float:
        """How far the logits of prompts that are decoded together are from those of each alone."""
        forced = list(map(_forced, prompts))
        capacity = max(map(len, prompts)) + _STEPS
        pool = _Pool(
            self._model,
            self._takes,
            self._fewer,
            self._like,
            len(prompts),
            capacity,
            Sampling(),
            self._rounded,
        )
        rows = [SequenceState(i, 0, list(ids), None, _STEPS) for i, ids in enumerate(prompts)]
        for slot, row in enumerate(rows):
            pool.hold(slot, self.prefix(row.ids[:-1]) if len(row.ids) > 1 else None)
        pool.admit(dict(enumerate(rows)))
        found = []
        for following in zip(*forced, strict=True):
            found.append(pool.forward(len(rows), capacity).float())
            pool.ids.copy_(torch.tensor(following, device=self._device))
            pool.positions.add_(1)
        return max(
            distance(seen, alone(self._model, ids, forced[i], self._new_cache()))
            for i, (ids, seen) in enumerate(zip(prompts, torch.stack(found, 1), strict=True))
        )

    @torch.inference_mode()
    def noise(self, *prompts: Ids) -> float:
        """The same of each prompt that is decoded by itself, through transformers' cache."""
        worst = 0.0
        for ids in prompts:
            forced, cache, found = _forced(ids), self._new_cache(), []
            for fed in (list(ids), *([token] for token in forced[:-1])):
                tokens = torch.tensor([fed], device=self._device)
                asked = {} if cache is None else {"past_key_values": cache}
                out = self._model(input_ids=tokens, use_cache=True, **asked)
                cache = out.past_key_values
                found.append(out.logits[0, -1].float())
            expected = alone(self._model, ids, forced, self._new_cache())
            worst = max(worst, distance(torch.stack(found), expected))
        return worst

    def run(
        self, prompts: Sequence[Ids], sampling: Sampling, at_once: int | None, stop: Stop | None
    ) -> Iterator[Completion]:
        """Completions as they finish, the longest prompts first. ``prompts`` are not empty, and leave
        room for a token. ``at_once``: rows, None for as many as memory holds."""
        waiting = list(sequences(prompts, sampling, self._limit))
        capacity = max(len(s.ids) + s.most for s in waiting)
        n_slots = min(len(waiting), at_once or self._fitting(capacity))
        while waiting:
            try:
                yield from self._run(waiting, n_slots, capacity, sampling, stop)
                return
            except torch.OutOfMemoryError:
                self._pool = None
                if n_slots == 1:
                    raise
            n_slots, self.halved, self.largest_batch = n_slots // 2, self.halved + 1, None
            torch.cuda.empty_cache()
            waiting = [s for s in waiting if s.finish is None]
            for sequence in waiting:  # from its beginning: its numbers are the same
                sequence.new, sequence.asked = [], 0

    def _run(
        self,
        sequences: list[SequenceState],
        n_slots: int,
        capacity: int,
        sampling: Sampling,
        stop: Stop | None,
    ) -> Iterator[Completion]:
        pool = self._pool_of(n_slots, capacity, sampling)
        waiting = self._with_prefixes(sequences)
        rows: list[SequenceState] = []
        started: tuple[list[SequenceState], Callable[[], list[int | None]]] | None = None
        while True:
            self._fill(pool, rows, waiting, n_slots)
            step = None
            if rows:
                for sequence in rows:
                    sequence.asked += 1
                self.largest_batch = max(len(rows), self.largest_batch or 0)
                step = list(rows), pool.step(rows)
            elif started is None:
                return
            if not self._on_gpu:  # nothing runs by itself there
                started, step = step, None
            if started is not None:
                for sequence, token in zip(started[0], started[1](), strict=True):
                    if sequence.finish is None:
                        sequence.take(token, sampling, stop)
                        if sequence.finish is not None:
                            yield sequence.completion()
            started = step

    def _with_prefixes(
        self, sequences: list[SequenceState]
    ) -> Iterator[tuple[SequenceState, Prefix | None]]:
        """Each with its prompt, which is computed when its first sample is asked for."""
        current, prefix = -1, None
        for sequence in sequences:
            if sequence.prompt != current:
                current = sequence.prompt
                prefix = self.prefix(sequence.ids[:-1]) if len(sequence.ids) > 1 else None
            yield sequence, prefix

    @staticmethod
    def _fill(
        pool: _Pool,
        rows: list[SequenceState],
        waiting: Iterator[tuple[SequenceState, Prefix | None]],
        n_slots: int,
    ) -> None:
        """Give the slots of sequences that are over to others, or close the gaps."""
        new: dict[int, SequenceState] = {}
        for slot in [i for i, sequence in enumerate(rows) if sequence.is_over][::-1]:
            if (following := next(waiting, None)) is not None:
                rows[slot] = new[slot] = following[0]
                pool.hold(slot, following[1])
                continue
            last = rows.pop()
            if slot < len(rows):
                rows[slot] = last
                pool.move(len(rows), slot, len(last.ids) + last.asked)
                if len(rows) in new:
                    new[slot] = new.pop(len(rows))
        while len(rows) < n_slots and (following := next(waiting, None)) is not None:
            new[len(rows)] = following[0]
            pool.hold(len(rows), following[1])
            rows.append(following[0])
        if new:
            pool.admit(new)

    def _fitting(self, capacity: int) -> int:
        """How many rows of ``capacity`` tokens to run at once, the present pool given up."""
        kind, free = self._device.type, 0 if self._pool is None else self._pool.n_bytes
        if self._on_gpu:
            free += torch.cuda.mem_get_info(self._device)[0]
            free += torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        else:
            free += available_memory()
        vocab: int = self._model.config.get_text_config().vocab_size
        each = _rounded_up(capacity) * self._like.token_bytes + _LOGITS * vocab
        return max(1, min(_MOST[kind], int(_SHARE[kind] * free) // each))

    def _pool_of(self, n_slots: int, capacity: int, sampling: Sampling) -> _Pool:
        """The one that there is, if it is large enough: its graphs stay."""
        pool, capacity, rows = self._pool, _rounded_up(capacity), n_slots
        if pool is None or not pool.fits(n_slots, capacity, sampling):
            if pool is not None:  # one for both, so that they can take turns
                slots, tokens = max(n_slots, pool.n_slots), max(capacity, pool.capacity)
                if slots <= self._fitting(tokens):
                    n_slots, capacity = slots, tokens
            self._pool = pool = None
            self._pool = pool = _Pool(
                self._model,
                self._takes,
                self._fewer,
                self._like,
                n_slots,
                capacity,
                sampling,
                self._rounded,
            )
        pool.begin(sampling, rows)
        return pool

    def notes(self) -> tuple[str, ...]:
        if not self.halved:
            return ()
        return (f"generated with {self.largest_batch} rows at once: memory ran out with more",)

    def facts(self) -> dict[str, object]:
        pool = self._pool
        how: object = None
        if self._on_gpu and pool is not None:
            how = pool.not_captured or "CUDA graphs"
        facts: dict[str, object] = {"loop": "slots"}
        facts |= {"slots": pool.n_slots, "tokens_a_slot": pool.capacity} if pool else {}
        facts |= {"captured": how} if how else {}
        return facts | ({"halved": self.halved} if self.halved else {})


class _Pool:
    """A cache of ``n_slots``, the state of the rows on the device, and the steps captured over them."""

    def __init__(
        self,
        model: PreTrainedModel,
        takes: frozenset[str],
        fewer: Fewer,
        like: Prefix,
        n_slots: int,
        capacity: int,
        sampling: Sampling,
        rounded: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self._model, self._takes, self._fewer = model, takes, fewer
        self._configs = configs_of(model)
        # Families that ask no table of attention functions build masks, and positions, from one.
        self._masks = not self._configs and "attention_mask" in takes
        self.n_slots, self.capacity = n_slots, capacity
        self._device, self._on_gpu = model.device, model.device.type == "cuda"
        with torch.inference_mode():
            self.cache = SlotCache(like, n_slots, capacity, self._device, rounded)
            self.n_bytes = n_slots * capacity * like.token_bytes
            self.ids, self.positions, self._count, self.drawn = (
                torch.zeros(n_slots, dtype=torch.long, device=self._device) for _ in range(4)
            )
            self._u = torch.zeros(
                n_slots, sampling.max_new_tokens, dtype=torch.float64, device=self._device
            )
        self.begin(sampling, n_slots)
        self._graphs: dict[object, torch.cuda.CUDAGraph] = {}
        self.not_captured: str | None = None
        self._out: list[Tensor] = []
        if self._on_gpu:  # written and read in turn
            self._out = [torch.empty(n_slots, dtype=torch.long).pin_memory() for _ in range(3)]

    def fits(self, n_slots: int, capacity: int, sampling: Sampling) -> bool:
        enough = self._u.shape[1] >= sampling.max_new_tokens or sampling.temperature == 0
        return enough and self.n_slots >= n_slots and self.capacity >= capacity

    def begin(self, sampling: Sampling, rows: int) -> None:
        """A run of so many rows at most."""
        self._sampling, self._most = sampling, rows

    @torch.inference_mode()
    def hold(self, slot: int, prefix: Prefix | None) -> None:
        if prefix is not None:
            self.cache.hold(slot, prefix)

    @torch.inference_mode()
    def move(self, source: int, target: int, tokens: int) -> None:
        self.cache.move(source, target, tokens)
        for state in (self.ids, self.positions, self._count, self._u):
            state[target].copy_(state[source])

    @torch.inference_mode()
    def admit(self, new: dict[int, SequenceState]) -> None:
        """Sequences whose prompts are in their slots: they feed the prompt's last token next."""
        slots = self._there(torch.tensor(list(new)))
        fed = torch.tensor([(s.ids[-1], len(s.ids) - 1) for s in new.values()])
        fed = self._there(fed)
        self.ids[slots], self.positions[slots] = fed[:, 0], fed[:, 1]
        self._count[slots] = 0
        if self._sampling.temperature > 0:
            u = torch.stack([torch.from_numpy(s.u) for s in new.values()])
            self._u[slots, : u.shape[1]] = self._there(u)

    def _there(self, host: Tensor) -> Tensor:
        return host.pin_memory().to(self._device, non_blocking=True) if self._on_gpu else host

    @torch.inference_mode()
    def step(self, rows: Sequence[SequenceState]) -> Callable[[], list[int | None]]:
        """Start one step of the first ``len(rows)`` slots; what it returns waits for the tokens."""
        n, longest = len(rows), max(len(s.ids) + s.asked for s in rows)
        if not self._on_gpu:
            self.compute(n, longest)
            return lambda: _tokens(self.drawn[:n])
        self._replay(self._bucket(n), min(self.capacity, _doubled(longest)))
        out = self._out[0]
        self._out.append(self._out.pop(0))
        out[:n].copy_(self.drawn[:n], non_blocking=True)
        ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        ready.record()

        def tokens() -> list[int | None]:
            ready.synchronize()
            return _tokens(out[:n])

        return tokens

    def compute(self, n: int, columns: int) -> Tensor:
        """One step of the first ``n`` slots: the logits [n, vocab] that the tokens were drawn from."""
        logits = self.forward(n, columns)
        sampling = self._sampling
        if sampling.temperature == 0:
            token = logits.argmax(-1)
        else:
            u = self._u[:n].gather(1, self._count[:n, None])[:, 0]
            pick = draw
            if self._on_gpu and has_triton():
                from qeval.engines.generation.kernels import draw as pick
            token = pick(logits, sampling.temperature, sampling.top_p, u)
        finite = logits.amax(-1).isfinite()
        self.drawn[:n] = token.where(finite, -1)
        self.ids[:n] = token.where(finite, 0)
        self.positions[:n].add_(1).clamp_(max=self.capacity - 1)
        self._count[:n].add_(1).clamp_(max=self._u.shape[1] - 1)
        return logits

    def forward(self, n: int, columns: int) -> Tensor:
        positions = self.positions[:n]
        step = Step(positions, columns)
        asked: dict[str, Any] = {"past_key_values": self.cache, "use_cache": True}
        if "position_ids" in self._takes:
            asked["position_ids"] = positions[:, None]
        if self._masks:
            asked["attention_mask"] = step.seen(None).long()
        self.cache.step = step
        with decoding(self._configs, step), self._fewer.on():
            logits: Tensor = self._model(input_ids=self.ids[:n, None], **asked).logits
        return logits[:, -1]

    def _bucket(self, n: int) -> int:
        """The smallest of the rows of this run, a half of it, a quarter .. that ``n`` rows fit in."""
        size = self._most
        while (size + 1) // 2 >= n and size > 1:
            size = (size + 1) // 2
        return size

    def _replay(self, n: int, columns: int) -> None:
        key = (n, columns, self._sampling.temperature, self._sampling.top_p)
        if self.not_captured:
            self.compute(n, columns)
            return
        if key not in self._graphs:
            try:
                self._graphs[key] = self._capture(n, columns)
            except (RuntimeError, torch.AcceleratorError) as err:
                if isinstance(err, torch.OutOfMemoryError):
                    raise
                self.not_captured = f"no: {str(err).strip().splitlines()[0]}"
                self._replay(n, columns)
                return
        self._graphs[key].replay()

    def _capture(self, n: int, columns: int) -> torch.cuda.CUDAGraph:
        """The state is as before: what warming up has changed is put back. Keys and values that it
        wrote lie at the rows' coming positions, where they are written again."""
        states = (self.ids, self.positions, self._count, self.drawn)
        before = [state.clone() for state in states]
        other = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        other.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(other):
            for _ in range(2):  # chooses algorithms, compiles kernels, makes handles
                self.compute(n, columns)
                for state, kept in zip(states, before, strict=True):
                    state.copy_(kept)
        torch.cuda.current_stream().wait_stream(other)
        graph = torch.cuda.CUDAGraph()
        shared = next(iter(self._graphs.values())).pool() if self._graphs else None
        with torch.cuda.graph(graph, pool=shared):
            self.compute(n, columns)
        for state, kept in zip(states, before, strict=True):
            state.copy_(kept)
        return graph


def _forced(ids: Ids) -> list[int]:
    """What follows a prompt in a trial."""
    return (list(ids[-_STEPS:]) * _STEPS)[:_STEPS]


def _tokens(drawn: Tensor) -> list[int | None]:
    return [None if token < 0 else token for token in drawn.tolist()]


def _rounded_up(tokens: int) -> int:
    return -(-tokens // _COLUMNS) * _COLUMNS


def _doubled(tokens: int) -> int:
    """The smallest of _COLUMNS, twice that, four times .. that holds ``tokens``."""
    size = _COLUMNS
    while size < tokens:
        size *= 2
    return size
