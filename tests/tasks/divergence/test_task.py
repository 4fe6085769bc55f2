"""The task: exact on tiny models, through the cache and side by side alike, floors, and bad input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gguf_files import build as build_gguf_file
from tiny_models import make_tiny_llama

from qeval.core.artifact import ModelRef
from qeval.core.errors import DataError, StoreError
from qeval.core.execution import Execution, FloorOptions, Running
from qeval.core.settings import EngineSettings
from qeval.data.datasets import DataSource
from qeval.engines.base import LM
from qeval.engines.hf import HfEngine
from qeval.engines.llamacpp import LlamaCppEngine
from qeval.formats.describe import describe_folder
from qeval.store.references import References
from qeval.tasks.base import TaskContext
from qeval.tasks.divergence.task import Divergence, DivergenceOptions

TASK, KEY = Divergence(), "cd" * 32


def open_hf(folder, **settings) -> HfEngine:
    given = EngineSettings(**{"device": "cpu", "dtype": "float32", **settings})
    return HfEngine.open(describe_folder(folder, "float32"), given)


@pytest.fixture(scope="module")
def changed(tiny_llama, tmp_path_factory):
    """The same model with noise in its weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("models") / "changed"
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder)
    return folder


@pytest.fixture
def options(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"line {i} of a text, {i * i} and {i % 7}" for i in range(900)))
    return DivergenceOptions(dataset=f"file:{text}", seq_len=64)


@pytest.fixture
def context(tiny_llama, tmp_path):
    ref = ModelRef("tiny", tiny_llama, "sha256:0", "float32")
    return TaskContext(ref, DataSource(None), tmp_path, lambda *_: None, limit=9)


def named(result):
    return {m.name: m for m in result.metrics}


def kept(lm, options, context, cache):
    rows, stream = TASK.remember(lm, options, context)
    parts = [part.numpy() if isinstance(part, torch.Tensor) else part for part in stream]
    with References(cache).writing(KEY, rows, parts[0].shape[1]) as writer:
        for part in parts:
            writer.append(part)
    return References(cache).find(KEY)


@pytest.mark.parametrize("protocol", ["llamacpp", "gptq"])
def test_every_token_is_its_definition(tiny_llama, changed, options, context, protocol):
    options = options.model_copy(update={"protocol": protocol})
    p, q = open_hf(tiny_llama), open_hf(changed)
    found = named(TASK.run(q, options, replace(context, baseline=p)))
    windows = []
    for i in range(9):
        ids = context.tokenizer.encode(context.data.load(options.dataset).documents[0])
        ids = ids[64 * i : 64 * i + 64]
        first = 33 if protocol == "llamacpp" else 1
        logits = [torch.tensor(lm.logits(ids)).double()[first - 1 : -1] for lm in (p, q)]
        log_p, log_q = (x.log_softmax(-1) for x in logits)
        windows.append((log_p.exp() * (log_p - log_q)).sum(-1).mean().item())
    assert found["kld"].values == pytest.approx(windows, rel=1e-4)
    assert found["kld"].value == pytest.approx(np.mean(windows), rel=1e-4) and found["kld"].n == 9
    assert 0.1 < found["same_top"].value < 1


def test_a_model_against_itself_is_zero(tiny_llama, options, context):
    lm = open_hf(tiny_llama)
    found = named(TASK.run(lm, options, replace(context, baseline=lm)))
    assert found["kld"].value == 0 and found["same_top"].value == 1 and found["kld_max"].value == 0


def test_what_the_cache_keeps_gives_the_same_number(tiny_llama, changed, options, context, tmp_path):
    p, q = open_hf(tiny_llama), open_hf(changed)
    live = named(TASK.run(q, options, replace(context, baseline=p)))
    reference = kept(p, options, context, tmp_path)
    cached = named(TASK.run(q, options, replace(context, baseline=reference)))
    assert abs(live["kld"].value - cached["kld"].value) < 1e-6
    assert cached["same_top"].value == live["same_top"].value
    itself = named(TASK.run(p, options, replace(context, baseline=reference)))
    assert 0 <= itself["kld"].value < 1e-7


def test_a_reference_of_other_windows_is_refused(tiny_llama, options, context, tmp_path):
    lm = open_hf(tiny_llama)
    reference = kept(lm, options, context, tmp_path)
    with pytest.raises(StoreError, match="remove it"):
        TASK.run(lm, options, replace(context, baseline=reference, limit=4))


def test_rounding_noise_is_above_zero_and_below_a_change(tiny_llama, changed, options, context):
    p = open_hf(tiny_llama)
    noise = Execution(running=Running(floor=FloorOptions(kind="rounding", seeds=2)))
    context = replace(context, baseline=p)
    floor = named(TASK.run(open_hf(tiny_llama, execution=noise), options, replace(context, passes=2)))
    moved = named(TASK.run(open_hf(changed), options, context))
    assert 0 < floor["kld"].value < moved["kld"].value / 10
    assert floor["kld"].n == 9


def test_noise_is_not_taken_for_a_look_ahead(tiny_llama, options, context, monkeypatch):
    """The check that a model is causal compares two calls of it, between which noise differs."""
    monkeypatch.setattr("qeval.models.loading._LEAK", 1e-9)
    noise = Execution(running=Running(floor=FloorOptions(kind="rounding", seeds=1)))
    context = replace(context, baseline=open_hf(tiny_llama))
    assert named(TASK.run(open_hf(tiny_llama, execution=noise), options, context))["kld"].value > 0


def test_the_other_engine_is_near(tiny_llama, options, context, cache_dir, tmp_path):
    made = build_gguf_file(tiny_llama, "F32", tmp_path / "out", cache_dir)
    lm = LlamaCppEngine.open(made, EngineSettings(device="cpu"))
    p = open_hf(tiny_llama)
    found = named(TASK.run(lm, options, replace(context, baseline=p)))
    assert 0 < found["kld"].value < 1e-4 and found["same_top"].value > 0.98
    back = named(TASK.run(p, options, replace(context, baseline=lm)))
    assert back["kld"].value == pytest.approx(found["kld"].value, rel=0.1)
    lm.close()


def test_another_tokenizer_is_refused(tiny_llama, options, context, tmp_path, tokenizer_with):
    other = make_tiny_llama(tmp_path / "other")
    tokenizer = tokenizer_with("<|a|>", "<|b|>", "<|c|>")
    tokenizer.save_pretrained(other)
    lm = open_hf(tiny_llama)
    with pytest.raises(DataError, match=r"other ones in this row's vocabulary .*one tokenizer"):
        TASK.run(open_hf(other), options, replace(context, baseline=lm))


def test_logits_that_are_not_finite_are_counted(tiny_llama, options, context):
    p, q = open_hf(tiny_llama), open_hf(tiny_llama)

    class Broken:
        vocab_size, max_seq_len = q.vocab_size, q.max_seq_len
        pieces, tokenize = staticmethod(lambda ids: None), staticmethod(lambda *_, **__: None)

        @staticmethod
        def predictions(windows, *, first=1):
            for i, rows in enumerate(q.predictions(windows, first=first)):
                yield torch.full_like(rows, torch.nan) if i == 3 else rows

    kld = named(TASK.run(Broken(), options, replace(context, baseline=p)))["kld"]
    assert kld.nonfinite == pytest.approx(1 / 9) and kld.value == 0


def test_floors_and_the_way_to_the_baseline_are_not_in_the_key(options):
    same = options.model_copy(update={"floors": [], "baseline_from": "live"})
    assert same.identity() == options.identity()
    assert options.model_copy(update={"protocol": "gptq"}).identity() != options.identity()


def test_several_texts_are_several_cells():
    assert DivergenceOptions.model_validate({"datasets": "pydoc"}).dataset == "pydoc"


def test_an_engine_that_has_logits_has_predictions(tiny_llama):
    lm, windows = open_hf(tiny_llama), [list(range(3, 30)), list(range(9, 40))]
    plain = LM.predictions(lm, windows, first=[5, 7])
    for a, b in zip(plain, lm.predictions(windows, first=[5, 7]), strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-4, atol=1e-5)
