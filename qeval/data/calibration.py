"""Drawing calibration windows from a text, by the rules of the GPTQ code family (docs/protocols.md).

Two rules: from one long text (WikiText, PTB, pydoc): joined, tokenized once, offsets drawn; from
documents (C4): documents drawn until one has more than ``seq_len`` tokens, then an offset in it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import Field, model_validator

from qeval.core.artifact import CalibrationFacts, ModelRef
from qeval.core.errors import DataError
from qeval.core.options import Options
from qeval.data.datasets import Corpus, DataSource
from qeval.models.tokenizer import Tokenizer
from qeval.models.told import count_up_to, encoder

MOST_TOKENS = 2**25  # 128 times the usual
DOCUMENT_SETS = ("c4", "c4-train", "c4-excerpt")
JOINS = {"ptb": "\n\n", "ptb-test": " "}  # everything else: "\n\n"


class CalibrationOptions(Options):
    """Which text a method sees. The record keeps all of it, and the text's sha256."""

    dataset: str = "c4-train"
    n_samples: int = Field(default=128, ge=1)
    seq_len: int = Field(default=2048, ge=2)
    seed: int = Field(default=0, ge=0, lt=2**32)  # numpy's range; random takes -1 for 1

    @model_validator(mode="after")
    def _bounded(self) -> CalibrationOptions:
        if (n := self.n_samples * self.seq_len) > MOST_TOKENS:
            raise ValueError(f"n_samples x seq_len is {n:,} tokens, the most is {MOST_TOKENS:,}")
        return self


@dataclass(frozen=True)
class Calibration:
    """What a method sees, and what the artifact keeps of it (Artifact.calibration)."""

    windows: list[list[int]]  # token ids
    facts: CalibrationFacts


def draw(data: DataSource, tokenizer: Tokenizer, options: CalibrationOptions) -> Calibration:
    """``n_samples`` windows of ``seq_len`` token ids.

    Raises:
        DataError: the text is shorter than one window.
    """
    corpus = data.load(options.dataset)
    n, seq_len, rng = options.n_samples, options.seq_len, random.Random(options.seed)
    if options.dataset in DOCUMENT_SETS:
        windows = draw_from_documents(corpus, tokenizer.encode, n, seq_len, rng)
    else:
        windows = draw_from_text(corpus, tokenizer.encode, n, seq_len, rng)
    tokens = sum(map(len, windows))
    facts = CalibrationFacts(
        dataset=options.dataset,
        n_samples=n,
        seq_len=seq_len,
        seed=options.seed,
        n_tokens=tokens,
        text_sha256=corpus.sha256,
    )
    return Calibration(windows, facts)


def check_length(data: DataSource, options: CalibrationOptions, model: ModelRef) -> None:
    """Raises DataError where ``draw`` will find no window in the text, as far as its files tell;
    of a set of documents some are long enough for any usual window."""
    encode = encoder(model)
    if options.dataset in DOCUMENT_SETS or encode is None:
        return
    corpus = data.load(options.dataset)
    n = count_up_to(encode, joined(corpus), options.seq_len + 1)
    if n <= options.seq_len:
        raise DataError(too_short(corpus.name, n, options.seq_len))


def draw_from_text(
    corpus: Corpus, encode: Callable[[str], list[int]], n: int, seq_len: int, rng: random.Random
) -> list[list[int]]:
    """The rule of long texts: join, tokenize once, draw offsets."""
    ids = encode(joined(corpus))
    if len(ids) <= seq_len:
        raise DataError(too_short(corpus.name, len(ids), seq_len))
    starts = [rng.randint(0, len(ids) - seq_len - 1) for _ in range(n)]
    return [ids[i : i + seq_len] for i in starts]


def draw_from_documents(
    corpus: Corpus, encode: Callable[[str], list[int]], n: int, seq_len: int, rng: random.Random
) -> list[list[int]]:
    """C4's rule: draw documents until one is longer than seq_len, then an offset inside it."""
    lengths: dict[int, int] = {}
    kept: dict[int, list[int]] = {}  # ids of the long ones only
    windows: list[list[int]] = []
    while len(windows) < n:
        index = rng.randint(0, len(corpus.documents) - 1)
        if index not in lengths:
            ids = encode(corpus.documents[index])
            lengths[index] = len(ids)
            if len(ids) > seq_len:
                kept[index] = ids
        if not kept and len(lengths) == len(corpus.documents):
            raise DataError(too_short(corpus.name, max(lengths.values()), seq_len))
        if index in kept:
            start = rng.randint(0, lengths[index] - seq_len - 1)
            windows.append(kept[index][start : start + seq_len])
    return windows


def joined(corpus: Corpus) -> str:
    return JOINS.get(corpus.name, "\n\n").join(corpus.documents)


def too_short(name: str, n_tokens: int, seq_len: int) -> str:
    return (
        f"dataset {name}: {n_tokens} tokens are not enough for a window of {seq_len}: "
        "use a longer text or a smaller seq_len"
    )
