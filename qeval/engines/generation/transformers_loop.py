"""Generation by transformers' own loop, for models that batching.py does not fit; and what holds for
both: the spec alone decides what is drawn.

A folder's files may set much of how text is generated: generation_config.json (penalties, beams, forced
tokens, lengths, a temperature), config.json (``use_cache: false``), their own ``generate``. None of it
counts here. Greedy is argmax of the logits, a sample is drawn from softmax(logits / temperature) cut to
the nucleus of ``top_p``, and ``Sampling`` and ``Stop`` say what ends a sequence.

Sequences of unequal length are padded on the left where the model is seen to answer as it does alone;
elsewhere only equally long ones run together (``Trials``). Every sample has its own random numbers, so
its text does not depend on what runs beside it, except for the rounding of matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from qeval.core.errors import EngineError
from qeval.engines.base import Completion, Ids, Sampling, Stop
from qeval.engines.generation.sampling import SequenceState, draw, sequences

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PAD = 0  # any id: no model may see it
# Tokens of a trial: given ones, of a prompt alone, of the padded prompt and of the one beside it.
_STEPS, _TRIED, _FEW, _MANY = 4, 64, 8, 512
_AT_ONCE = {"cpu": 8, "cuda": 64}  # sequences
_RESTLESS = ("dynamic", "longrope")  # rotary frequencies that follow the longest sequence of a batch


def take_no_advice(model: PreTrainedModel) -> None:
    """From now on the model's files decide nothing about generating or about what a call returns."""
    model.generation_config = GenerationConfig()
    for config in (model.config, model.config.get_text_config()):
        config.use_cache = True
        config.return_dict = True
        config.output_attentions = config.output_hidden_states = False


def check_generates(model: PreTrainedModel) -> None:
    """Raises EngineError for a class of transformers without ``generate``."""
    if not isinstance(model, GenerationMixin):
        raise EngineError(
            f"{model.config.model_type}: its class, {type(model).__name__}, cannot generate: only "
            "perplexity can be measured"
        )


class Decoder:
    """Completes prompts with ``model``, whose sequences have at most ``limit`` tokens.

    ``new_cache`` makes the cache of a batch where it is not transformers' own (None there); ``why``:
    this loop and not batching.py's; ``exact``: the model computes in float32 and rounds nothing.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        limit: int,
        new_cache: Callable[[], object],
        *,
        why: str,
        exact: bool,
    ) -> None:
        self._model, self._limit, self._new_cache, self._exact = model, limit, new_cache, exact
        self._why = why
        self._trials: Trials | None = None
        self.largest_batch: int | None = None

    def notes(self) -> tuple[str, ...]:
        return () if self._trials is None else self._trials.notes()

    def facts(self) -> dict[str, object]:
        found = {} if self._trials is None else self._trials.facts()
        return {"loop": "transformers", "why": self._why, **found}

    def run(
        self, prompts: Sequence[Ids], sampling: Sampling, at_once: int | None, stop: Stop | None
    ) -> Iterator[Completion]:
        """Completions as they finish, the longest prompts first. ``prompts`` are not empty, and leave
        room for a token."""
        at_once = at_once or _AT_ONCE[self._model.device.type]
        rows = list(sequences(prompts, sampling, self._limit))
        if self._trials is None:
            self._trials = Trials(self._model, self._new_cache, self._exact, [row.ids for row in rows])
        for batch in self._batches(rows, at_once):
            self.largest_batch = max(len(batch), self.largest_batch or 0)
            yield from self._finished(batch, sampling, stop)

    def _batches(self, rows: list[SequenceState], at_once: int) -> Iterator[list[SequenceState]]:
        """All that may run together, in pieces of ``at_once``."""
        assert self._trials is not None
        if at_once == 1 or len(rows) == 1 or not self._trials.may_batch():
            yield from ([row] for row in rows)
            return
        groups = [list(same) for _, same in groupby(rows, lambda row: len(row.ids))]
        if len(groups) > 1 and self._trials.may_pad([row.ids for row in rows]):
            groups = [rows]
        for group in groups:
            for start in range(0, len(group), at_once):
                yield group[start : start + at_once]

    def _finished(
        self, rows: list[SequenceState], sampling: Sampling, stop: Stop | None
    ) -> Iterator[Completion]:
        """One batch to its end. Where the longest sequence fills the model's context, the others go on
        without it."""
        assert self._trials is not None
        while rows:
            longest = max(len(row.ids) + len(row.new) for row in rows)
            steps = min(sampling.max_new_tokens - len(rows[0].new), self._limit - longest)
            ends = _Ends(rows, sampling, stop)
            ids, pick = [row.ids + row.new for row in rows], _Draw(rows, sampling)
            if self._trials.caches:
                generate(self._model, ids, steps, self._new_cache(), pick, ends)
            else:
                generate_plainly(self._model, ids, steps, pick, ends)
            for row in rows:
                if row.finish is not None:
                    yield row.completion()
            rows = [row for row in rows if row.finish is None]


def generate(
    model: PreTrainedModel,
    rows: Sequence[Ids],
    steps: int,
    cache: object,
    pick: LogitsProcessor,
    ends: StoppingCriteria | None = None,
) -> None:
    """transformers' greedy loop over rows, padded on the left to one length; ``pick`` and ``ends`` see
    what comes out. The class's own ``generate``: a folder may bring another."""
    width = max(map(len, rows))
    ids = [[_PAD] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    config = GenerationConfig(max_new_tokens=steps, do_sample=False, use_cache=True, pad_token_id=_PAD)
    with torch.inference_mode():
        GenerationMixin.generate(
            model,
            torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            generation_config=config,
            logits_processor=LogitsProcessorList([pick]),
            stopping_criteria=StoppingCriteriaList([ends] if ends else []),
            **({} if cache is None else {"past_key_values": cache}),
        )


def generate_plainly(
    model: PreTrainedModel,
    rows: Sequence[Ids],
    steps: int,
    pick: LogitsProcessor,
    ends: StoppingCriteria,
) -> None:
    """The same over rows of one length by what defines it: a forward of the whole sequence a token."""
    ids = torch.tensor(rows, device=model.device)
    for _ in range(steps):
        with torch.inference_mode():
            scores = pick(ids, model(input_ids=ids, use_cache=False).logits[:, -1].float())
            ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], dim=-1)
            if bool(ends(ids, scores).all()):
                return


class _Draw(LogitsProcessor):  # type: ignore[misc]
    """Leaves the loop's argmax no choice but the token drawn for each row. A row whose logits are not
    finite (NaN, infinity) is finished."""

    def __init__(self, rows: list[SequenceState], sampling: Sampling) -> None:
        self._rows, self._sampling = rows, sampling

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        finite = scores.amax(-1).isfinite().tolist()
        for row, fine in zip(self._rows, finite, strict=True):
            if not fine and row.finish is None:
                row.finish = "nonfinite"
        if self._sampling.temperature == 0:
            return scores
        u = [
            row.u[len(row.new)] if row.u is not None and row.finish is None else 0 for row in self._rows
        ]
        drawn = draw(
            scores,
            self._sampling.temperature,
            self._sampling.top_p,
            torch.tensor(u, dtype=torch.float64, device=scores.device),
        )
        return scores.fill_(-torch.inf).scatter_(1, drawn[:, None], 0.0)


class _Ends(StoppingCriteria):  # type: ignore[misc]
    """Hands each row its new token, and says which rows are finished."""

    def __init__(self, rows: list[SequenceState], sampling: Sampling, stop: Stop | None) -> None:
        self._rows, self._sampling, self._stop = rows, sampling, stop

    def __call__(self, input_ids: Tensor, scores: object, **_: object) -> Tensor:
        for row, token in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
            if row.finish is None:
                row.take(token, self._sampling, self._stop)
        done = [row.finish is not None for row in self._rows]
        return torch.tensor(done, device=input_ids.device)


class Trials:
    """What a model does with a cache and in a batch, found out by trying it on the prompts at hand.

    Some classes of transformers answer differently through their cache, some in a batch, and some see
    padding in spite of the attention mask (a state that runs through it, positions counted from it).

    Compared are the logits before and after a few given tokens with those of one forward of the whole
    sequence (``distance``). Rounding gave 3e-6 in float32, 0.007 in float16 and 0.09 in bfloat16 on
    SmolLM2-135M, a wrong position or mask 0.15 to 1.2 on small models of ten classes. A doubtful model
    runs prompts of equal length together: slower, but right.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        new_cache: Callable[[], object],
        exact: bool,
        prompts: Sequence[Ids],
    ) -> None:
        """``exact``: the model computes in float32 and rounds nothing."""
        self._model, self._new_cache = model, new_cache
        self._kind = model.config.model_type
        self._batches: bool | None = None
        self._pads: bool | None = None
        longest = max(prompts, key=len)
        self._some = list(longest[:_FEW])
        self._forced = list(longest[-_STEPS:]) + [longest[-1]] * (_STEPS - len(longest))
        alone = (self._some, longest[:_TRIED])
        self._noise = max(self._apart([ids]) for ids in alone)
        self.caches = new_cache() is not None or self._noise < (0.005 if exact else 0.3)
        self._allowed = min(0.2, max(rounding_allowed(model, exact), 4 * self._noise))

    def may_batch(self) -> bool:
        """Whether a sequence is answered beside another one of its length as it is alone."""
        if self._batches is None:
            other = self._some[::-1]
            self._batches = self.caches and self._apart([other, self._some]) < self._allowed
        return self._batches

    def may_pad(self, prompts: Sequence[Ids]) -> bool:
        """Whether a short sequence is answered beside a long one as it is alone."""
        if self._pads is None:
            long, short = max(prompts, key=len), min(prompts, key=len)
            self._pads = (
                not is_restless(self._model)
                and self._apart([long[:_MANY], short[:_FEW]]) < self._allowed
            )
        return self._pads

    def facts(self) -> dict[str, bool | None]:
        """What the model was found fit for; None: was not needed."""
        return {"cache": self.caches, "batches": self._batches, "padding": self._pads}

    def notes(self) -> tuple[str, ...]:
        if self.caches:
            return ()
        return (
            f"generated without a cache: through that of transformers {self._kind} answers otherwise",
        )

    def _apart(self, rows: list[Ids]) -> float:
        """Of the last row as it is decoded together with the others, from what it is alone."""
        forced = _Force(self._forced)
        try:
            expected = alone(self._model, rows[-1], self._forced, self._new_cache())
            generate(self._model, rows, _STEPS, self._new_cache(), forced)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # each class has its own where it does not take this
            return math.inf
        return distance(torch.stack(forced.seen), expected)


class _Force(LogitsProcessor):  # type: ignore[misc]
    """Remembers the last row's logits, and has the given tokens follow."""

    def __init__(self, forced: list[int]) -> None:
        self._forced = forced
        self.seen: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        token = self._forced[len(self.seen)]
        self.seen.append(scores[-1].clone())
        scores[:, token] = torch.inf
        return scores


def is_restless(model: PreTrainedModel) -> bool:
    """Whether positions are encoded otherwise beside a longer sequence."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return str(rope.get("rope_type") or rope.get("type") or "") in _RESTLESS


def rounding_allowed(model: PreTrainedModel, exact: bool) -> float:
    """The ``distance`` up to which two ways to compute the same are taken for the same."""
    return 0.001 if exact else 0.15 if model.dtype == torch.bfloat16 else 0.03


def alone(model: PreTrainedModel, ids: Ids, forced: Ids, cache: object) -> Tensor:
    """The logits after ``ids`` and after each but the last of the ``forced`` tokens that follow, by one
    forward of the whole: [len(forced), vocab], float32."""
    with torch.inference_mode():
        logits = model(
            input_ids=torch.tensor([[*ids, *forced[:-1]]], device=model.device),
            use_cache=cache is not None,
            **({} if cache is None else {"past_key_values": cache}),
        ).logits
    return logits[0, len(ids) - 1 :].float()  # type: ignore[no-any-return]


def distance(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over the standard deviation of the logits, the largest of the
    steps; 0 where the model itself gives nothing finite."""
    fine = expected.isfinite()
    if not fine.any(-1).all() or expected.isnan().any():
        return 0.0
    apart = (found - expected).masked_fill(~fine, 0).square().mean(-1).sqrt()
    spread = expected.masked_fill(~fine, 0).std(-1)
    worst = (apart / spread.clamp(min=1e-30)).max().item()
    return worst if math.isfinite(worst) else math.inf
