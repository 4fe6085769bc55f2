"""`divergence`: how far a row's predictions moved from the baseline's, KL(p_baseline || q) per token.

Both models read the same token ids, in the windows of a perplexity protocol (``llamacpp`` by default:
chunks of 512, of which the second half is compared). Each has its own output head. docs/protocols.md
says what each number is, docs/statistics.md what its interval is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final, get_args

from pydantic import AliasChoices, Field

from qeval.core.errors import DataError
from qeval.core.execution import FloorKind
from qeval.core.options import Options
from qeval.engines.base import LM
from qeval.tasks.base import Expected, Task, TaskContext, TaskResult
from qeval.tasks.divergence.summary import expected_metrics, summarized
from qeval.tasks.divergence.tokens import Tokens, compared
from qeval.tasks.perplexity import (
    TextOptions,
    check_windows,
    chosen,
    count_windows,
    dataset_name,
    first_predicted,
    own_length,
    spread_mark,
    text_of,
    tokenizer_drift,
    told_window,
    window_length,
    windows_of,
)

if TYPE_CHECKING:
    from qeval.core.artifact import ModelRef
    from qeval.data.datasets import DataSource
    from qeval.engines.base import Ids

_UNLIKE = 0.02  # share of ids that mean other text in the two vocabularies: another tokenizer


class DivergenceOptions(TextOptions):
    dataset: str = Field("wikitext2", validation_alias=AliasChoices("dataset", "datasets"))
    protocol: Literal["llamacpp", "gptq"] = "llamacpp"  # whose windows
    # The rows that show what differs without any quantization.
    floors: list[FloorKind] = Field(default_factory=lambda: [*get_args(FloorKind)])
    # The baseline's predictions: read from the cache, where they are put once for all rows; or computed
    # beside the row's, with both models in memory. auto: live on CUDA.
    baseline_from: Literal["auto", "cache", "live"] = Field(default="auto")

    def identity(self) -> dict[str, Any]:
        """Which rows there are beside it, and where p comes from, change no row's number."""
        data = super().identity()
        return {k: v for k, v in data.items() if k not in ("floors", "baseline_from")}


@final
class Divergence(Task[DivergenceOptions]):
    version: ClassVar[int] = 1
    Options: ClassVar[type[Options]] = DivergenceOptions
    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    on_simulated: ClassVar[bool] = True
    against_baseline: ClassVar[bool] = True

    def label(self, options: DivergenceOptions) -> str:
        own = f"@{options.seq_len}" if options.seq_len else ""
        return f"kl/{options.protocol}/{dataset_name(options.dataset)}{own}{spread_mark(options)}"

    def preflight(self, options: DivergenceOptions, data: DataSource, *, weak_sandbox: bool) -> None:
        """Raises DataError where the text cannot be found."""
        data.check(text_of(options))

    def preflight_model(self, options: DivergenceOptions, model: ModelRef, data: DataSource) -> None:
        """Raises DataError where the text has no window, or the model takes none of that length."""
        check_windows("divergence", options, model, data, options.protocol)

    def expected(
        self, options: DivergenceOptions, limit: int | None, model: ModelRef | None, data: DataSource
    ) -> Expected:
        protocol = options.protocol
        n = count_windows(protocol, options, model, data, limit)
        tokens = None
        if n is not None and model is not None:
            length = told_window("divergence", options, model, own_length(protocol))
            tokens = None if length is None else n * (length - first_predicted(protocol, length))
        return Expected("windows", n, expected_metrics(self.label(options)), tokens)

    def remember(
        self, lm: LM, options: DivergenceOptions, context: TaskContext
    ) -> tuple[int, Iterator[Any]]:
        ids, first, _ = _windows(lm, options, context)
        return sum(len(window) - first for window in ids), lm.predictions(ids, first=first)

    def run(self, lm: LM, options: DivergenceOptions, context: TaskContext) -> TaskResult:
        """Raises DataError where the two models' vocabularies have other tokens."""
        assert context.baseline is not None  # `against_baseline`
        ids, first, facts = _windows(lm, options, context)
        _check_vocabulary(lm, ids, context)
        found: list[list[Tokens]] = [[] for _ in ids]
        with ThreadPoolExecutor(context.n_threads) as pool:
            for turn in range(context.passes):
                for i, tokens in enumerate(_compared(lm, ids, first, context, pool)):
                    found[i].append(tokens)
                    done = turn * len(ids) + i + 1
                    context.progress(done, context.passes * len(ids), "windows")
        metrics = summarized([Tokens.joined(parts) for parts in found], self.label(options))
        notes = (*context.tokenizer.notes(), *tokenizer_drift(lm, context, facts.pop("windows")))
        return TaskResult(metrics, notes, facts=facts, context=len(ids[0]))


def _windows(
    lm: LM, options: DivergenceOptions, context: TaskContext
) -> tuple[list[list[int]], int, dict[str, Any]]:
    """The windows, the first token of each that is predicted, and facts of them for the record."""
    seq_len = window_length("divergence", options, lm, context, own_length(options.protocol))
    windows = windows_of(options.protocol, options, seq_len, context)
    ids = chosen(windows.ids, options, context.limit)
    facts = {
        "windows": windows,
        "text_sha256": windows.text_sha256,
        "tokenizer_sha256": context.tokenizer.sha256,
        "tokens_sha256": hashlib.sha256(repr(ids).encode()).hexdigest(),
        "seq_len": seq_len,
        "windows_total": len(windows.ids),
    }
    return ids, first_predicted(options.protocol, seq_len), facts


def _check_vocabulary(lm: LM, ids: Sequence[Ids], context: TaskContext) -> None:
    """Raises DataError where the ids of the text are other tokens to the row's own vocabulary. One that
    is padded otherwise, or has a few more special tokens, is the same."""
    used = sorted(set().union(*ids))
    if outside := [i for i in used if i >= lm.vocab_size]:
        raise DataError(
            f"divergence: token {outside[0]} of the evaluated text is outside this row's vocabulary of "
            f"{lm.vocab_size}: it has another tokenizer than the baseline"
        )
    theirs = lm.pieces(used)
    if theirs is None:
        return
    ours = [context.tokenizer.decode([i], special=True).strip() for i in used]
    unlike = [
        i
        for i, a, b in zip(used, ours, theirs, strict=True)
        if "\ufffd" not in a + b and a != b.strip()
    ]
    if len(unlike) > _UNLIKE * len(used):
        i = unlike[0]
        raise DataError(
            f"divergence: {len(unlike)} of {len(used)} tokens of the evaluated text are other ones in "
            f"this row's vocabulary (token {i}: {theirs[used.index(i)]!r}, the baseline's is "
            f"{ours[used.index(i)]!r}): compare models of one tokenizer"
        )


def _compared(
    lm: LM, ids: Sequence[Ids], first: int, context: TaskContext, pool: ThreadPoolExecutor
) -> Iterator[Tokens]:
    import numpy as np

    assert context.baseline is not None
    theirs, ours = context.baseline.predictions(ids, first=first), lm.predictions(ids, first=first)
    for window, p, q in zip(ids, theirs, ours, strict=True):
        yield compared(p, q, np.asarray(window[first:], np.int64), pool)
