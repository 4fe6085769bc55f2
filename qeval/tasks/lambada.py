"""`lambada`: the last word of a passage, which people guess from the whole of it and not from its end.

LAMBADA (Paperno et al. 2016, arXiv 1606.06031) in OpenAI's version, 5,153 passages. The model reads a
passage with its last word in place (teacher forcing):

    accuracy    the share of passages where the argmax of the logits is the right one for every token of
                " " + last word: where greedy decoding would write the word
    perplexity  exp(-mean over passages of the word's log-likelihood, summed over its tokens), nats

Equals the task ``lambada_openai`` of EleutherAI's lm-evaluation-harness (0.4.13, version 1.0 of the
task) on the same token ids, with its ``softmax_dtype=float32`` where the model is in 16 bits.
docs/protocols.md has the rule of tokens.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from qeval.core.errors import DataError
from qeval.core.options import Options
from qeval.core.record import Metric
from qeval.engines.base import LM
from qeval.stats.intervals import mean_stderr, share_interval
from qeval.tasks.base import Expected, Task, TaskContext, TaskResult
from qeval.tasks.perplexity import Windows, tokenizer_drift

if TYPE_CHECKING:
    import torch

    from qeval.core.artifact import ModelRef
    from qeval.data.datasets import Corpus, DataSource
    from qeval.engines.base import Logits
    from qeval.models.tokenizer import Tokenizer

DATASET = "lambada"
PROTOCOL = "lambada/openai"


class LambadaOptions(Options):
    """None: the rule has no parameters."""


@dataclass(frozen=True)
class Passage:
    """What the model is fed, and the number of its first token that is asked for: the word's."""

    ids: list[int]
    first: int
    cut: int = 0  # tokens left out at its start

    @property
    def word(self) -> list[int]:
        return self.ids[self.first :]


@dataclass(frozen=True)
class Answer:
    nll: float  # of the word, nats, summed over its tokens; may not be finite
    right: bool


@final
class Lambada(Task[LambadaOptions]):
    version: ClassVar[int] = 1
    Options: ClassVar[type[Options]] = LambadaOptions
    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    on_simulated: ClassVar[bool] = True

    def label(self, options: LambadaOptions) -> str:
        return PROTOCOL

    def preflight(self, options: LambadaOptions, data: DataSource, *, weak_sandbox: bool) -> None:
        """Raises DataError where the passages cannot be found."""
        data.check(DATASET)

    def expected(
        self, options: LambadaOptions, limit: int | None, model: ModelRef | None, data: DataSource
    ) -> Expected:
        whole = len(data.load(DATASET).documents)
        n = whole if limit is None else min(limit, whole)
        return Expected("passages", n, metrics([Answer(0.0, True)]))

    def run(self, lm: LM, options: LambadaOptions, context: TaskContext) -> TaskResult:
        """Raises DataError where the model has no room for some passage's last word, or its tokenizer
        no tokens."""
        corpus = context.data.load(DATASET)
        texts = corpus.documents[: context.limit]
        passages = encoded(corpus, len(texts), context.tokenizer, context.model_limit)
        longest = max(len(passage.ids) for passage in passages)
        if longest - 1 > lm.max_seq_len:
            raise DataError(
                f"{DATASET}: passages of up to {longest} tokens, as the model takes them, and these "
                f"weights take {lm.max_seq_len}: leave this task out for them"
            )
        answers = answered(lm, passages, context)
        facts = {
            "text_sha256": corpus.sha256,
            "tokenizer_sha256": context.tokenizer.sha256,
            "tokens_sha256": hashlib.sha256(
                repr([(p.ids, p.first) for p in passages]).encode()
            ).hexdigest(),
            "passages_total": len(corpus.documents),
            "word_tokens": sum(len(passage.word) for passage in passages),
        }
        notes = (
            *context.tokenizer.notes(),
            *tokenizer_drift(lm, context, Windows([], list(texts), corpus.sha256)),
            *_cut_notes(passages, context.model_limit),
        )
        return TaskResult(metrics(answers), notes, facts=facts, context=longest)


# Passages


def halves(text: str) -> tuple[str, str]:
    """A passage before its last word, and the word with the white space before it. Words end at single
    spaces: a line break inside belongs to the word."""
    before = text.rpartition(" ")[0].rstrip()
    return before, text[len(before) :]


def encoded(corpus: Corpus, n: int, tokenizer: Tokenizer, model_limit: int) -> list[Passage]:
    """The first ``n`` passages.

    Both the text before the word and the whole passage are encoded, with the tokenizer's default
    special tokens. The word's tokens are those of the whole that come after as many as the first has.
    What does not fit the model is cut off at the start, BOS too; the last token is not fed and needs no
    room.

    Raises:
        DataError: no room for a word, or no tokens of it.
    """
    found = []
    for i, text in enumerate(corpus.documents[:n]):
        before = tokenizer.encode(halves(text)[0])
        word = tokenizer.encode(text)[len(before) :]
        ids = [*before, *word]
        cut = max(0, len(ids) - (model_limit + 1))
        first = len(before) - cut
        if not word or first < 1:
            raise DataError(
                f"{corpus.place(i)}: the last word has {len(word)} tokens and the text before it "
                f"{len(before)}, and the model takes {model_limit}: lambada needs room for the word "
                "and a token before it"
            )
        found.append(Passage(ids[cut:], first, cut))
    return found


def _cut_notes(passages: Sequence[Passage], model_limit: int) -> tuple[str, ...]:
    cut = sum(passage.cut > 0 for passage in passages)
    if not cut:
        return ()
    return (
        f"lambada: {cut} of {len(passages)} passages cut at the start to the model's maximum of "
        f"{model_limit} tokens",
    )


# Measuring


def answered(lm: LM, passages: Sequence[Passage], context: TaskContext) -> list[Answer]:
    """In the passages' order. They are run in another: those of one length, and with as many tokens of
    the word, are neighbours, so that an engine takes them together; the longest come first, so that
    what does not fit the memory fails at once."""
    order = sorted(range(len(passages)), key=lambda i: (-len(passages[i].ids), passages[i].first, i))
    windows, first = [passages[i].ids for i in order], [passages[i].first for i in order]
    found: dict[int, Answer] = {}
    for i, logits in zip(order, lm.predictions(windows, first=first), strict=True):
        found[i] = answer(logits, passages[i].word)
        context.progress(len(found), len(passages), "passages")
    return [found[i] for i in range(len(passages))]


def answer(logits: Logits, word: Sequence[int]) -> Answer:
    """``logits`` [n, vocabulary] predict the n tokens of ``word``; in float64, where the logits are."""
    import numpy as np

    if not isinstance(logits, np.ndarray):
        return _answer_torch(logits, word)
    rows = logits.astype(np.float64)
    right = bool((rows.argmax(-1) == word).all())
    with np.errstate(all="ignore"):  # NaN and inf are passed on, not warned about
        rows -= rows.max(-1, keepdims=True)
        nll = np.log(np.exp(rows).sum(-1)) - rows[np.arange(len(word)), word]
    return Answer(float(nll.sum()), right)


def _answer_torch(logits: torch.Tensor, word: Sequence[int]) -> Answer:
    import torch

    rows, ids = logits.double(), torch.tensor(word, device=logits.device)
    right = (rows.argmax(-1) == ids).all()
    nll = (rows.logsumexp(-1) - rows.gather(-1, ids[:, None])[:, 0]).sum()
    both = torch.stack([nll, right.double()]).tolist()  # one wait for the device
    return Answer(both[0], bool(both[1]))


def metrics(answers: Sequence[Answer]) -> tuple[Metric, Metric]:
    """Accuracy as a share, and perplexity with the delta method's standard error, SE(exp m) = exp(m)
    SE(m). Where an answer's logits were not finite, neither has a value."""
    n = len(answers)
    finite = [math.isfinite(a.nll) for a in answers]
    ok, share = all(finite), finite.count(False) / n
    units = tuple(str(i) for i in range(n))  # passages by their number in the file, from 0
    right = [float(a.right) for a in answers]
    low, high = (share_interval(right) if ok else None) or (None, None)
    accuracy = Metric(
        name="acc",
        value=math.fsum(right) / n if ok else None,
        protocol=PROTOCOL,
        stderr=mean_stderr(right) if ok else None,
        low=low,
        high=high,
        n=n,
        nonfinite=share,
        values=tuple(x if known else None for x, known in zip(right, finite, strict=True)),
        units=units,
        better="higher",
        pairs="item",
        change="points",
        heading="accuracy",
    )
    nll = [a.nll for a in answers]
    mean = math.fsum(nll) / n if ok else math.nan
    value = math.exp(mean) if mean < math.log(sys.float_info.max) else None
    stderr = mean_stderr(nll) if value is not None else None
    perplexity = Metric(
        name="ppl",
        value=value,
        protocol=PROTOCOL,
        stderr=None if value is None or stderr is None else value * stderr,
        n=n,
        nonfinite=share if value is not None or share else 1.0,
        values=tuple(x if known else None for x, known in zip(nll, finite, strict=True)),
        units=units,
        better="lower",
        pairs="item",
        change="relative",
        heading="PPL",
    )
    return accuracy, perplexity
