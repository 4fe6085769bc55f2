"""Perplexity protocols against their definitions, written out again without qeval's code."""

import math
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from qeval.core.artifact import ModelRef
from qeval.core.errors import DataError
from qeval.core.settings import EngineSettings
from qeval.data.datasets import Corpus, DataSource
from qeval.engines.hf import HfEngine
from qeval.formats.describe import describe_folder
from qeval.tasks.base import TaskContext
from qeval.tasks.perplexity import (
    Perplexity,
    PerplexityOptions,
    chosen,
    protocol_id,
    window_length,
)

WORDS = [
    "the",
    "model",
    "of",
    "a",
    "language",
    "and",
    "its",
    "weights",
    "are",
    "small",
    "numbers",
    "in",
    "rows",
    "12",
    "34",
    "(x)",
    "==",
    "y\n",
]


@pytest.fixture(scope="module")
def lm(tiny_llama):
    return HfEngine.open(describe_folder(tiny_llama, "float32"), EngineSettings("cpu", "float32"))


@pytest.fixture(scope="module")
def reference(tiny_llama):
    """transformers' model and tokenizer: ids -> NLL of every token after the first, in float64."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)

    def nll(ids: list[int]) -> np.ndarray:
        with torch.inference_mode():
            logp = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        return -logp[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].numpy()

    return tokenizer, nll


def documents(n: int, seed: int = 0, longest: int = 200) -> tuple[str, ...]:
    rng = random.Random(seed)
    return tuple(" ".join(rng.choice(WORDS) for _ in range(rng.randint(5, longest))) for _ in range(n))


@pytest.fixture
def context(tiny_llama, tmp_path, monkeypatch):
    def make(limit=None, texts=None):
        if texts is not None:
            load = lambda self, name: Corpus(name, texts, "0" * 64, "test")  # noqa: E731
            monkeypatch.setattr(DataSource, "load", load)
        ref = ModelRef("tiny", tiny_llama, "sha256:0", "float32")
        return TaskContext(ref, DataSource(), tmp_path, lambda *_: None, limit)

    return make


def run(lm, context, **options):
    result = Perplexity().run(lm, PerplexityOptions(**options), context)
    return result.metrics[0], result


def test_gptq_wikitext2(lm, reference, context):
    texts = ("", " = Title = \n", *documents(40))
    tokenizer, nll = reference
    ids = tokenizer("\n\n".join(texts))["input_ids"]
    windows = [ids[i * 128 : (i + 1) * 128] for i in range(len(ids) // 128)]
    means = [nll(w).mean() for w in windows]
    metric, result = run(lm, context(texts=texts), dataset="wikitext2", seq_len=128)
    assert len(windows) > 10
    assert metric.value == pytest.approx(math.exp(np.mean(means)), rel=1e-5)
    assert metric.values == pytest.approx(means, rel=1e-5)
    se = np.std(means, ddof=1) / math.sqrt(len(means))
    assert metric.stderr == pytest.approx(metric.value * se, rel=1e-5)
    assert metric.protocol == "gptq/wikitext2@128"
    assert result.context == 128


def test_the_window_is_the_models_maximum_where_that_is_less_than_2048(lm, context):
    metric, result = run(lm, context(texts=documents(60)), dataset="wikitext2")
    assert result.facts["seq_len"] == 512
    assert metric.protocol == "gptq/wikitext2"


@pytest.mark.parametrize(
    ("dataset", "join"), [("ptb", "\n\n"), ("ptb-new", " "), ("c4-new", " "), ("pydoc", "\n\n")]
)
def test_the_joins_of_the_other_sets(lm, reference, context, dataset, join):
    texts = documents(30, longest=40)
    tokenizer, nll = reference
    ids = tokenizer(join.join(texts))["input_ids"]
    metric, _ = run(lm, context(texts=texts), dataset=dataset, seq_len=64)
    windows = [ids[i * 64 : (i + 1) * 64] for i in range(len(ids) // 64)]
    assert metric.n == len(windows)
    assert metric.value == pytest.approx(math.exp(np.mean([nll(w).mean() for w in windows])), rel=1e-5)


def test_c4_new_reads_1100_documents_and_256_windows_at_most(lm, context):
    texts = (*("word " * 3 for _ in range(1100)), *("other " * 500 for _ in range(3)))
    metric, _ = run(lm, context(texts=texts), dataset="c4-new", seq_len=8)
    assert metric.n == 256
    short, _ = run(lm, context(texts=texts[:10]), dataset="c4-new", seq_len=8)
    assert short.n < 256


def test_gptq_c4_draws_documents_and_offsets_with_seed_0(lm, reference, context):
    texts = documents(50, longest=120)
    tokenizer, nll = reference
    rng = random.Random(0)
    windows = []
    for _ in range(256):
        while True:
            ids = tokenizer(texts[rng.randint(0, len(texts) - 1)])["input_ids"]
            if len(ids) > 64:
                break
        i = rng.randint(0, len(ids) - 64 - 1)
        windows.append(ids[i : i + 64])
    metric, _ = run(lm, context(texts=texts), dataset="c4", seq_len=64)
    assert metric.n == 256
    assert metric.value == pytest.approx(math.exp(np.mean([nll(w).mean() for w in windows])), rel=1e-5)


def test_c4_without_a_long_document_is_an_error_and_not_an_endless_loop(lm, context):
    with pytest.raises(DataError, match="not enough for a window of 256"):
        run(lm, context(texts=documents(5, longest=20)), dataset="c4", seq_len=256)


def test_a_c4_document_of_exactly_seq_len_tokens_is_never_drawn(lm, context, reference):
    tokenizer, _ = reference
    exact = tokenizer.decode(tokenizer(documents(1)[0])["input_ids"][:32])
    n = len(tokenizer(exact)["input_ids"])
    with pytest.raises(DataError):
        run(lm, context(texts=(exact,)), dataset="c4", seq_len=n)
    metric, _ = run(lm, context(texts=(exact,)), dataset="c4", seq_len=n - 1)
    assert metric.n == 256


def test_llamacpp_scores_the_second_half_of_each_chunk(lm, reference, context):
    texts = ("", " = Title = \n", "", *(d + " \n" for d in documents(30)))
    tokenizer, nll = reference
    ids = tokenizer("".join(" \n" if t == "" else t for t in texts))["input_ids"]
    chunks = [ids[i * 128 : (i + 1) * 128] for i in range(len(ids) // 128)]
    tokens = np.concatenate([nll(c)[64:] for c in chunks])  # nll[j] is of token j + 1: 65 .. 127
    metric, _ = run(lm, context(texts=texts), dataset="wikitext2", protocol="llamacpp", seq_len=128)
    assert len(tokens) == 63 * len(chunks)
    assert metric.value == pytest.approx(math.exp(tokens.mean()), rel=1e-5)
    se = math.sqrt(((tokens**2).mean() - tokens.mean() ** 2) / (len(tokens) - 1))
    assert metric.stderr == pytest.approx(metric.value * se, rel=1e-4)


def test_llamacpp_chunks_are_512_and_begin_with_bos_where_the_vocabulary_adds_it(
    lm, context, monkeypatch
):
    seen = {}

    def nll(windows, *, first=1):
        seen.update(windows=windows, first=first)
        return iter([np.ones(len(w) - first, np.float32) for w in windows])

    monkeypatch.setattr(lm, "nll", nll)
    ctx = context(texts=documents(60))
    ctx.tokenizer.adds_bos, ctx.tokenizer.bos_id = True, 5
    run(lm, ctx, dataset="pydoc", protocol="llamacpp")
    assert seen["first"] == 257
    assert {len(w) for w in seen["windows"]} == {512}
    assert {w[0] for w in seen["windows"]} == {5}


def test_benchmark_feeds_one_sample_token_by_token(lm, reference, context):
    texts = documents(30)
    tokenizer, nll = reference
    ids = tokenizer("\n\n".join(texts))["input_ids"]
    start = random.Random(0).randint(0, len(ids) - 64 - 1)
    tokens = nll(ids[start : start + 64])
    metric, result = run(
        lm, context(texts=texts), dataset="wikitext2", protocol="gptq-benchmark", seq_len=64
    )
    assert metric.protocol == "gptq/benchmark:wikitext2-train@64"
    assert metric.value == pytest.approx(math.exp(tokens.sum() / 63), rel=1e-5)
    assert metric.stderr == pytest.approx(metric.value * tokens.std() / math.sqrt(62), rel=1e-4)
    assert [m.name for m in result.metrics] == ["ppl", "step_ms"]


def test_limit_takes_the_first_windows(lm, context):
    full, _ = run(lm, context(texts=documents(40)), dataset="pydoc", seq_len=64)
    part, result = run(lm, context(limit=3, texts=documents(40)), dataset="pydoc", seq_len=64)
    assert part.values == pytest.approx(full.values[:3], rel=1e-5)
    assert result.facts["windows_total"] == full.n


def test_a_text_shorter_than_a_window_and_a_window_over_the_maximum(lm, context):
    with pytest.raises(DataError, match="are not enough for a window of 512"):
        run(lm, context(texts=("short",)), dataset="pydoc")
    with pytest.raises(DataError, match="seq_len 1024 is over the model's maximum of 512"):
        run(lm, context(texts=documents(40)), dataset="pydoc", seq_len=1024)


def test_not_finite_tokens_are_counted_and_no_number_is_given(lm, context, monkeypatch):
    def nll(windows, *, first=1):
        for i, w in enumerate(windows):
            yield np.full(len(w) - first, np.nan if i == 0 else 2.0, np.float32)

    monkeypatch.setattr(lm, "nll", nll)
    metric, _ = run(lm, context(limit=4, texts=documents(40)), dataset="pydoc", seq_len=64)
    assert metric.value is None
    assert metric.nonfinite == pytest.approx(0.25)
    assert metric.values[0] is None
    assert metric.values[1] == pytest.approx(2.0)


def test_an_overflowing_perplexity_is_not_finite(lm, context, monkeypatch):
    huge = lambda windows, first=1: iter([np.full(63, 1e4, np.float32) for _ in windows])  # noqa: E731
    monkeypatch.setattr(lm, "nll", huge)
    metric, _ = run(lm, context(limit=2, texts=documents(40)), dataset="pydoc", seq_len=64)
    assert metric.value is None
    assert metric.nonfinite == 1.0


def test_drift_of_the_engines_own_tokenizer_is_reported(lm, context, monkeypatch):
    ctx = context(limit=1, texts=documents(40))
    monkeypatch.setattr(lm, "tokenize", lambda text, **how: ctx.tokenizer.encode(text, **how))
    assert run(lm, ctx, dataset="pydoc", seq_len=64)[1].notes == ()
    monkeypatch.setattr(lm, "tokenize", lambda text, **_: [*ctx.tokenizer.encode(text)[:7], 1, 2])
    (note,) = run(lm, ctx, dataset="pydoc", seq_len=64)[1].notes
    assert "gives 9 tokens" in note
    assert "first difference at token 7" in note


def test_names_of_special_tokens_that_are_read_as_text_are_told(lm, context):
    tokenizer = context(limit=1).tokenizer
    name = tokenizer.decode([tokenizer.eos_ids[0]], special=True)
    texts = [f"{text} {name}" for text in documents(40)]

    def notes(texts, protocol):
        ctx = context(limit=1, texts=texts)
        return run(lm, ctx, dataset="pydoc", seq_len=64, protocol=protocol)[1].notes

    (note,) = notes(texts, "llamacpp")
    assert note.startswith("names of special tokens in the text are read as text, as llama-perplexity")
    spelled, named = (
        len(tokenizer.encode("\n".join(texts), special=False, parse_special=p)) for p in (False, True)
    )
    assert note.endswith(f"reads them: {spelled:,} tokens, {named:,} with those special tokens")
    assert notes(texts, "gptq") == notes(documents(40), "llamacpp") == ()


def test_file_text_enters_the_key_by_content(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    options = PerplexityOptions(dataset=f"file:{path}")
    first = options.identity()
    path.rename(tmp_path / "b.txt")
    assert PerplexityOptions(dataset=f"file:{tmp_path / 'b.txt'}").identity() == first
    (tmp_path / "b.txt").write_text("two")
    assert PerplexityOptions(dataset=f"file:{tmp_path / 'b.txt'}").identity() != first


def test_real_text_and_model(stories260k: Path, shared: Path, tmp_path):
    """stories260k on WikiText-2: golden made with transformers alone, by the loop of
    test_gptq_wikitext2 over the first 4 windows of 512 (transformers 5.17.0, torch 2.13.0)."""
    lm = HfEngine.open(describe_folder(stories260k, "float32"), EngineSettings("cpu", "float32"))
    ref = ModelRef("stories", stories260k, "sha256:0", "float32")
    ctx = TaskContext(ref, DataSource(shared / "data"), tmp_path, lambda *_: None, 4)
    metric, _ = run(lm, ctx, dataset="wikitext2")
    assert metric.value == pytest.approx(GOLDEN, rel=1e-4)


GOLDEN = 119.518761


@pytest.mark.parametrize(
    ("asked", "own", "model", "weights", "length"),
    [
        (None, 2048, 4096, 4096, 2048),
        (None, 2048, 2**31, 2**31, 2048),
        (None, 2048, 512, 512, 512),
        (None, 2048, 512, 4096, 512),  # weights that could take more do not make another column
        (None, 512, 128, 4096, 128),
        (None, 2048, 4096, 128, "the windows of this column are 2048 tokens.*set seq_len: 128"),
        (64, 2048, 4096, 128, 64),
        (256, 2048, 4096, 128, "seq_len 256 is over the model's maximum of 128"),
    ],
)
def test_every_row_of_a_column_has_windows_of_one_length(asked, own, model, weights, length):
    options = PerplexityOptions(dataset="pydoc", seq_len=asked)
    lm, context = SimpleNamespace(max_seq_len=weights), SimpleNamespace(model_limit=model)
    if isinstance(length, int):
        assert window_length("perplexity", options, lm, context, own) == length
        return
    with pytest.raises(DataError, match=length):
        window_length("perplexity", options, lm, context, own)


@pytest.mark.parametrize(
    ("kind", "more", "limit"),
    [
        ("llama", {"max_position_embeddings": 96}, 96),
        ("gpt2", {"n_positions": 80}, 80),
        ("mpt", {"max_seq_len": 256}, 256),
        ("bloom", {}, 2**31),
        ("bloom", {"seq_length": 2048}, 2048),
        ("mamba", {}, 2**31),
    ],
)
def test_the_longest_sequence_of_a_model(kind, more, limit, tmp_path):
    from transformers import AutoConfig

    from qeval.models.loading import model_limit

    AutoConfig.for_model(kind, **more).save_pretrained(tmp_path)
    assert model_limit(tmp_path) == limit


def test_a_limit_takes_the_first_windows_or_spreads_them():
    windows = [[i] for i in range(100)]
    first = PerplexityOptions(dataset="wikitext2")
    spread = PerplexityOptions(dataset="wikitext2", spread=True)
    assert chosen(windows, first, 4) == windows[:4]
    assert chosen(windows, spread, 4) == [[12], [37], [62], [87]]
    assert chosen(windows, spread, None) == chosen(windows, spread, 100) == windows
    assert chosen(windows[:3], spread, 5) == windows[:3]


def test_spread_windows_are_another_protocol_and_the_first_keep_their_key():
    first = PerplexityOptions(dataset="wikitext2")
    spread = PerplexityOptions(dataset="wikitext2", spread=True)
    assert "spread" not in first.identity() and spread.identity()["spread"]
    assert (protocol_id(first), protocol_id(spread)) == ("gptq/wikitext2", "gptq/wikitext2~spread")
