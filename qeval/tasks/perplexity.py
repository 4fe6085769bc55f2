"""`perplexity`: exp of the mean negative log-likelihood of a text, by the protocols of the field.

``gptq``            the GPTQ code family (GPTQ, SparseGPT, AWQ, QuantEase): the joined text tokenized
                    once, windows of min(2048, model's maximum) tokens, every window on its own;
                    PPL = exp(mean over windows of the window's mean NLL over its seq_len - 1 tokens).
``gptq-benchmark``  GPTQ-for-LLaMa's ``--benchmark N --check``: the first calibration sample of the
                    set, one token at a time through the KV cache; one sample, so a huge error.
``llamacpp``        the ``llama-perplexity`` program: chunks of 512, only the second half is scored,
                    PPL = exp(total NLL / count).

Every protocol runs on every engine, from the same token ids. Which text each dataset name stands for
and how its documents are joined is fixed below; docs/protocols.md has the table.
"""

from __future__ import annotations

import hashlib
import math
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, final

from pydantic import AliasChoices, Field, field_validator

from qeval.core.artifact import ModelRef
from qeval.core.errors import DataError, QevalError
from qeval.core.files import file_sha256, user_path
from qeval.core.options import Options
from qeval.core.record import Metric
from qeval.data.calibration import (
    DOCUMENT_SETS,
    CalibrationOptions,
    check_length,
    draw,
    draw_from_documents,
    joined,
    too_short,
)
from qeval.data.datasets import FILE_PREFIX, Corpus, text_dataset
from qeval.engines.base import LM
from qeval.models.tokenizer import first_difference
from qeval.models.told import count_up_to, encoder, told_limit
from qeval.stats.intervals import mean_stderr
from qeval.tasks.base import Expected, Task, TaskContext, TaskResult
from qeval.tasks.kept_windows import nll_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qeval.data.datasets import DataSource

GPTQ_SEQ_LEN = 2048
LLAMACPP_N_CTX = 512
C4_WINDOWS = 256
C4_NEW_DOCUMENTS = 1100
# A dataset that an evaluation name reads under another name, and a calibration split for a test set.
CORPUS = {"ptb-new": "ptb-test", "c4-new": "c4", "c4-excerpt-new": "c4-excerpt"}
CALIBRATION_SPLIT = {"wikitext2": "wikitext2-train", "ptb": "ptb-train", "c4": "c4-train"}


class TextOptions(Options):
    """A named text, cut into windows. ``datasets`` may be a list: one cell for each."""

    dataset: str = Field(validation_alias=AliasChoices("dataset", "datasets"))
    seq_len: int | None = Field(default=None, ge=2)  # None: the protocol's own
    spread: bool = False  # `limit` takes windows from all over the text, and not the first

    @field_validator("dataset")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            if value.startswith(FILE_PREFIX):
                user_path(value.removeprefix(FILE_PREFIX))
            elif value not in CORPUS:
                text_dataset(value)
        except QevalError as err:
            raise ValueError(str(err)) from err
        return value

    def identity(self) -> dict[str, object]:
        """Content instead of the path of a ``file:``; pydoc's text is that of a CPython version."""
        data = self.model_dump(mode="json")
        if not self.spread:  # came later: keys stay
            del data["spread"]
        if self.dataset == "pydoc":
            data["dataset"] = f"pydoc:{sys.version_info.major}.{sys.version_info.minor}"
        if self.dataset.startswith(FILE_PREFIX):
            path = user_path(self.dataset.removeprefix(FILE_PREFIX))
            found = file_sha256(path) if path.is_file() else "missing"  # preflight says so
            data["dataset"] = f"file:{found}"
        return data


class PerplexityOptions(TextOptions):
    """``protocol`` may be a list, too: one cell for each pair."""

    protocol: Literal["gptq", "gptq-benchmark", "llamacpp"] = "gptq"


@dataclass(frozen=True)
class Windows:
    """Token ids to score, and the text they were cut from, to compare tokenizers on."""

    ids: list[list[int]]
    texts: list[str]
    text_sha256: str
    parse_special: bool = True  # whether names of special tokens in the texts became those tokens


@final
class Perplexity(Task[PerplexityOptions]):
    # 2: ids are those of tokenizer.json; names of special tokens are text to the llamacpp protocol
    version: ClassVar[int] = 2
    Options: ClassVar[type[Options]] = PerplexityOptions
    needs: ClassVar[frozenset[str]] = frozenset({"nll"})
    on_simulated: ClassVar[bool] = True

    def label(self, options: PerplexityOptions) -> str:
        return protocol_id(options)

    def needs_of(self, options: PerplexityOptions) -> frozenset[str]:
        return frozenset({"steps"}) if options.protocol == "gptq-benchmark" else self.needs

    def takes_limit(self, options: PerplexityOptions) -> bool:
        return options.protocol != "gptq-benchmark"  # one sample

    def preflight(self, options: PerplexityOptions, data: DataSource, *, weak_sandbox: bool) -> None:
        """Raises DataError where the text cannot be found."""
        data.check(
            _benchmark_text(options) if options.protocol == "gptq-benchmark" else text_of(options)
        )

    def preflight_model(self, options: PerplexityOptions, model: ModelRef, data: DataSource) -> None:
        """Raises DataError where the text has no window, or the model takes none of that length."""
        if options.protocol == "gptq-benchmark":
            length = told_window("perplexity", options, model, GPTQ_SEQ_LEN)
            if length is not None:
                check_length(data, _benchmark_calibration(options, length), model)
        else:
            check_windows("perplexity", options, model, data, options.protocol)

    def expected(
        self, options: PerplexityOptions, limit: int | None, model: ModelRef | None, data: DataSource
    ) -> Expected:
        if options.protocol == "gptq-benchmark":  # one sample pairs with nothing
            return Expected("windows", 1)
        n = count_windows(options.protocol, options, model, data, limit)
        protocol = protocol_id(options)
        return Expected("windows", n, (_ppl(0.0, None, [], 0.0, protocol),))

    def run(self, lm: LM, options: PerplexityOptions, context: TaskContext) -> TaskResult:
        """Raises DataError where the text is shorter than one window."""
        seq_len = window_length("perplexity", options, lm, context, own_length(options.protocol))
        windows = windows_of(options.protocol, options, seq_len, context)
        ids = chosen(windows.ids, options, context.limit)
        metric, extra = _MEASURES[options.protocol](lm, ids, options, context)
        facts = {
            "text_sha256": windows.text_sha256,
            "tokenizer_sha256": context.tokenizer.sha256,
            "tokens_sha256": hashlib.sha256(repr(ids).encode()).hexdigest(),
            "seq_len": seq_len,
            "windows_total": len(windows.ids),
        }
        notes = (
            *context.tokenizer.notes(),
            *names_as_text(context, windows),
            *tokenizer_drift(lm, context, windows),
        )
        return TaskResult((metric, *extra), notes, facts=facts, context=seq_len, memory_rank=3)


def protocol_id(options: PerplexityOptions) -> str:
    """``gptq/wikitext2``; ``@seq_len`` is added where it is not the protocol's own."""
    name = dataset_name(options.dataset)
    own = f"@{options.seq_len}" if options.seq_len else ""
    if options.protocol == "gptq-benchmark":
        return f"gptq/benchmark:{CALIBRATION_SPLIT.get(name, name)}{own}"
    return f"{options.protocol}/{name}{own}{spread_mark(options)}"


def spread_mark(options: TextOptions) -> str:
    """Behind a protocol's id."""
    return "~spread" if options.spread else ""


def dataset_name(dataset: str) -> str:
    """As protocol ids have it: ``file:`` without its folder."""
    if dataset.startswith(FILE_PREFIX):
        return f"file:{Path(dataset.removeprefix(FILE_PREFIX)).name}"
    return dataset


def window_length(
    task: str, options: TextOptions, lm: LM, context: TaskContext, own: int = GPTQ_SEQ_LEN
) -> int:
    """The same for every row of a model: ``own``, or the model's maximum if smaller.

    Raises:
        DataError: the row's weights take no windows of that many tokens.
    """
    if options.seq_len:
        _check_maximum(task, options.seq_len, lm.max_seq_len)
        return options.seq_len
    length = min(own, context.model_limit)
    if length > lm.max_seq_len:
        raise DataError(
            f"{task}: the windows of this column are {length} tokens, as the model takes them, and "
            f"these weights take {lm.max_seq_len}: set seq_len: {lm.max_seq_len} for all rows"
        )
    return length


def told_window(task: str, options: TextOptions, model: ModelRef, own: int) -> int | None:
    """The same, as far as the model's files tell it."""
    limit = told_limit(model)
    if limit is None:
        return options.seq_len
    if options.seq_len:
        _check_maximum(task, options.seq_len, limit)
        return options.seq_len
    return min(own, limit)


def _check_maximum(task: str, seq_len: int, limit: int) -> None:
    if seq_len > limit:
        raise DataError(f"{task}: seq_len {seq_len} is over the model's maximum of {limit}")


def check_windows(
    task: str,
    options: TextOptions,
    model: ModelRef,
    data: DataSource,
    protocol: str = "gptq",
) -> None:
    """What a job would find of its windows, as far as the model's files tell it before. Of a set of
    documents some are long enough for any usual window.

    Raises:
        DataError: the model takes no windows of that many tokens, or the text is shorter than one.
    """
    length, encode = told_window(task, options, model, own_length(protocol)), encoder(model)
    if length is None or encode is None or text_of(options) in DOCUMENT_SETS:
        return
    corpus = data.load(text_of(options))
    n = count_up_to(encode, _TEXTS[protocol](options, corpus), length)
    if n < length:
        raise DataError(too_short(corpus.name, n, length))


def count_windows(
    protocol: str, options: TextOptions, model: ModelRef | None, data: DataSource, limit: int | None
) -> int | None:
    """How many windows a run will have, or None where only the model's own code tells. A text that is
    cut off by ``limit`` is not read to its end.

    Raises:
        DataError: the text cannot be read; the model takes no windows of that many tokens.
    """
    if model is None:
        return None
    length = told_window("the task", options, model, own_length(protocol))
    if length is None:
        return None
    if protocol == "gptq" and text_of(options) in DOCUMENT_SETS and not _is_c4_new(options):
        whole = C4_WINDOWS
        return whole if limit is None else min(limit, whole)
    encode = encoder(model, special=protocol == "gptq")
    if encode is None:
        return None
    text = _TEXTS[protocol](options, data.load(text_of(options)))
    most = C4_WINDOWS if _is_c4_new(options) and protocol == "gptq" else limit
    if limit is not None and most is not None:
        most = min(limit, most)
    n = len(encode(text)) if most is None else count_up_to(encode, text, most * length)
    return n // length if most is None else min(most, n // length)


# Windows


def own_length(protocol: str) -> int:
    """Tokens of a window, where neither the spec nor the model says otherwise."""
    return LLAMACPP_N_CTX if protocol == "llamacpp" else GPTQ_SEQ_LEN


def windows_of(protocol: str, options: TextOptions, seq_len: int, context: TaskContext) -> Windows:
    """Raises DataError where the text is shorter than one window."""
    return _BUILDERS[protocol](options, seq_len, context)


def first_predicted(protocol: str, seq_len: int) -> int:
    """The first token of a window that is scored: llama-perplexity scores logits n_ctx/2 .. n_ctx-2."""
    return seq_len // 2 + 1 if protocol == "llamacpp" else 1


def chosen(windows: list[list[int]], options: TextOptions, limit: int | None) -> list[list[int]]:
    """The first ``limit`` windows; with ``spread`` the middle ones of as many equal parts of the text,
    which are hardly correlated and stand for all of it."""
    if limit is None or limit >= len(windows) or not options.spread:
        return windows[:limit]
    return [windows[(2 * i + 1) * len(windows) // (2 * limit)] for i in range(limit)]


def text_of(options: TextOptions) -> str:
    """The dataset that an evaluation reads."""
    return CORPUS.get(options.dataset, options.dataset)


def _benchmark_text(options: TextOptions) -> str:
    return CALIBRATION_SPLIT.get(options.dataset, options.dataset)


def gptq_windows(options: TextOptions, seq_len: int, context: TaskContext) -> Windows:
    corpus = context.data.load(text_of(options))
    encode = context.tokenizer.encode
    if options.dataset in DOCUMENT_SETS:
        texts: list[str] = []

        def remember(text: str) -> list[int]:
            texts.append(text)
            return encode(text)

        ids = draw_from_documents(corpus, remember, C4_WINDOWS, seq_len, random.Random(0))
        return Windows(ids, texts, corpus.sha256)
    text = _gptq_text(options, corpus)
    ids = _cut(encode(text), seq_len, corpus.name)
    return Windows(ids[:C4_WINDOWS] if _is_c4_new(options) else ids, [text], corpus.sha256)


def _is_c4_new(options: TextOptions) -> bool:
    return options.dataset in ("c4-new", "c4-excerpt-new")


def _gptq_text(options: TextOptions, corpus: Corpus) -> str:
    """One long text."""
    if _is_c4_new(options):
        return " ".join(corpus.documents[:C4_NEW_DOCUMENTS])
    return joined(corpus)


def _llamacpp_windows(options: TextOptions, seq_len: int, context: TaskContext) -> Windows:
    """Chunks whose first token is replaced by BOS where the vocabulary adds one. No other special token
    is added, and those that the text names are text, as llama-perplexity reads them."""
    corpus = context.data.load(text_of(options))
    text = _llamacpp_text(options, corpus)
    tokenizer = context.tokenizer
    bos = [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
    whole = [*bos, *tokenizer.encode(text, special=False, parse_special=False)]
    ids = [[*bos, *window[len(bos) :]] for window in _cut(whole, seq_len, corpus.name)]
    return Windows(ids, [text], corpus.sha256, parse_special=False)


def _llamacpp_text(options: TextOptions, corpus: Corpus) -> str:
    if options.dataset.startswith("wikitext2"):  # the raw file again
        return "".join(" \n" if row == "" else row for row in corpus.documents)
    return "\n".join(corpus.documents)


def _benchmark_windows(options: TextOptions, seq_len: int, context: TaskContext) -> Windows:
    chosen = _benchmark_calibration(options, seq_len)
    drawn = draw(context.data, context.tokenizer, chosen)
    text = context.tokenizer.decode(drawn.windows[0])
    return Windows(drawn.windows, [text], drawn.facts["text_sha256"])


def _benchmark_calibration(options: TextOptions, seq_len: int) -> CalibrationOptions:
    return CalibrationOptions(dataset=_benchmark_text(options), n_samples=1, seq_len=seq_len)


def _cut(ids: list[int], seq_len: int, name: str) -> list[list[int]]:
    if len(ids) < seq_len:
        raise DataError(too_short(name, len(ids), seq_len))
    return [ids[i : i + seq_len] for i in range(0, len(ids) - seq_len + 1, seq_len)]


# Measuring


Measured = tuple[Metric, tuple[Metric, ...]]


def _measure_gptq(
    lm: LM, ids: list[list[int]], options: PerplexityOptions, context: TaskContext
) -> Measured:
    nll = _nll(lm, ids, 1, context)
    means = [float(x.mean(dtype="float64")) for x in nll]
    finite, share = _nonfinite(nll)
    mean = math.fsum(means) / len(means) if finite else math.nan
    stderr = mean_stderr(means) if finite else None
    return _ppl(mean, stderr, means, share, protocol_id(options)), ()


def _measure_llamacpp(
    lm: LM, ids: list[list[int]], options: PerplexityOptions, context: TaskContext
) -> Measured:
    """llama-perplexity takes the error over single tokens."""
    import numpy as np

    nll = _nll(lm, ids, first_predicted("llamacpp", len(ids[0])), context)
    means = [float(x.mean(dtype="float64")) for x in nll]
    finite, share = _nonfinite(nll)
    tokens = np.concatenate(nll).astype(np.float64)
    mean = float(tokens.mean()) if finite else math.nan
    stderr = math.sqrt(tokens.var() / (len(tokens) - 1)) if finite and len(tokens) > 1 else None
    return _ppl(mean, stderr, means, share, protocol_id(options)), ()


def _measure_benchmark(
    lm: LM, ids: list[list[int]], options: PerplexityOptions, context: TaskContext
) -> Measured:
    import numpy as np

    name = protocol_id(options)
    trace = lm.steps(ids[0])
    tokens = trace.nll.astype(np.float64)
    finite, share = _nonfinite([trace.nll])
    mean = float(tokens.mean()) if finite else math.nan
    stderr = math.sqrt(tokens.var() / (len(tokens) - 1)) if finite else None
    extra = [_cost("step_ms", 1e3 * float(np.median(trace.seconds)), "ms", name, len(trace.seconds))]
    if trace.allocated is not None:
        mib = trace.allocated / 2**20
        extra.append(_cost("allocated_mib", mib, "MiB", name, len(trace.seconds)))
    return _ppl(mean, stderr, [mean], share, name), tuple(extra)


def _cost(name: str, value: float, unit: str, protocol: str, steps: int) -> Metric:
    return Metric(
        name,
        value,
        protocol,
        unit,
        n=steps,
        better="lower",
        pairs="none",
        change="time" if unit == "ms" else "ratio",
        cost=True,
        heading=name.partition("_")[0],
        group="time" if unit == "ms" else None,
    )


_TEXTS = {"gptq": _gptq_text, "llamacpp": _llamacpp_text}
_BUILDERS = {
    "gptq": gptq_windows,
    "llamacpp": _llamacpp_windows,
    "gptq-benchmark": _benchmark_windows,
}
_MEASURES = {
    "gptq": _measure_gptq,
    "llamacpp": _measure_llamacpp,
    "gptq-benchmark": _measure_benchmark,
}


def _nll(lm: LM, ids: list[list[int]], first: int, context: TaskContext) -> list[NDArray[np.float32]]:
    out = []
    asked = (
        lm.nll(ids, first=first) if context.endpoint is None else nll_of(lm, ids, first, context.out)
    )
    for nll in asked:
        out.append(nll)
        context.progress(len(out), len(ids), "windows")
    return out


def _nonfinite(nll: list[NDArray[np.float32]]) -> tuple[bool, float]:
    """Whether every token's NLL is finite, and the share that is not."""
    import numpy as np

    tokens = np.concatenate(nll)
    share = 1.0 - float(np.isfinite(tokens).mean())
    return share == 0.0, share


def _ppl(mean: float, stderr: float | None, means: list[float], share: float, protocol: str) -> Metric:
    """PPL with the delta method's standard error: SE(exp m) = exp(m) SE(m). A PPL over what a float
    holds is not finite either."""
    value = math.exp(mean) if mean < math.log(sys.float_info.max) else math.inf
    ok = math.isfinite(value)
    return Metric(
        name="ppl",
        value=value if ok else None,
        protocol=protocol,
        stderr=value * stderr if ok and stderr is not None else None,
        n=len(means),
        nonfinite=share if ok or share else 1.0,
        values=tuple(x if math.isfinite(x) else None for x in means),
        better="lower",
        pairs="window",
        change="relative",
        heading="PPL",
    )


def names_as_text(context: TaskContext, windows: Windows) -> tuple[str, ...]:
    """One note where the evaluated text holds names of special tokens (PTB's ``<unk>``) and they were
    read as text: by the tokenizer's own reading it is a text of other tokens, with another PPL."""
    if windows.parse_special:
        return ()
    encode = context.tokenizer.encode
    for text in windows.texts:
        spelled, named = (encode(text, special=False, parse_special=p) for p in (False, True))
        if spelled != named:
            return (
                "names of special tokens in the text are read as text, as llama-perplexity reads them: "
                f"{len(spelled):,} tokens, {len(named):,} with those special tokens",
            )
    return ()


def tokenizer_drift(lm: LM, context: TaskContext, windows: Windows) -> tuple[str, ...]:
    """One note where the engine's own vocabulary cuts the evaluated text differently from the original
    tokenizer. Scores are not affected (ids go in), but a deployment that feeds text will be."""
    for text in windows.texts:
        theirs = lm.tokenize(text, parse_special=windows.parse_special)
        if theirs is None:
            continue
        ours = context.tokenizer.encode(text, parse_special=windows.parse_special)
        if theirs != ours:
            return (
                f"tokenizer drift: the artifact's own vocabulary gives {len(theirs)} tokens for the "
                f"evaluated text, the original {len(ours)}; first difference at token "
                f"{first_difference(ours, theirs)}",
            )
    return ()
