"""The llama.cpp engine against transformers on the same float weights, and against itself."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qeval.core.artifact import Artifact, ModelRef
from qeval.core.cores import usable_cores
from qeval.core.errors import EngineError
from qeval.core.provenance import cpu_name
from qeval.core.settings import EngineSettings
from qeval.engines import llamacpp
from qeval.engines.base import Sampling, seed_of
from qeval.engines.llamacpp import LlamaCppEngine, token_nll, window_note
from qeval.llama import library as llama
from qeval.llama.gguf_file import GgufTensor
from qeval.quant.base import BuildContext
from qeval.quant.gguf import Gguf, GgufOptions

llama_cpp = pytest.importorskip("llama_cpp")
CPU = EngineSettings(device="cpu", n_threads=1)
IDS = [int(i) for i in np.random.default_rng(0).integers(1, 512, 96)]


@pytest.fixture(scope="session")
def engine(tiny_f32: Artifact) -> Iterator[LlamaCppEngine]:
    engine = LlamaCppEngine.open(tiny_f32, CPU)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def torch_model(tiny_llama: Path):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()


def torch_logits(model, ids: list[int]) -> np.ndarray:
    import torch

    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].numpy()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def nll_of(logits: np.ndarray, ids: list[int]) -> np.ndarray:
    return -log_softmax(logits)[np.arange(len(ids) - 1), ids[1:]]


# ---- scoring


def assert_same_up_to_f16(a: np.ndarray, b: np.ndarray) -> None:
    """llama.cpp's attention works in f16 and sums in another order for another batch size: 1e-3 a token
    on this model of random weights, where a wrong position or mask would change it by 1 or more."""
    assert a.shape == b.shape
    assert np.abs(a - b).mean() < 5e-3 and np.abs(a - b).max() < 0.1


def test_logits_equal_those_of_transformers(engine, torch_model):
    ours, theirs = engine.logits(IDS), torch_logits(torch_model, IDS)
    assert ours.shape == (len(IDS), 512) and ours.dtype == np.float32
    # Not the float32 of torch: the K/V cache and flash attention's sums are f16 (11 bits).
    error = (ours - theirs) / theirs.std()
    assert np.sqrt((error**2).mean()) < 2e-3 and np.abs(error).max() < 1e-2


def test_nll_equals_that_of_transformers(engine, torch_model):
    [ours] = engine.nll([IDS])
    theirs = nll_of(torch_logits(torch_model, IDS), IDS)
    assert ours.mean() == pytest.approx(theirs.mean(), rel=1e-4)
    assert_same_up_to_f16(ours, theirs)


def test_nll_is_the_log_softmax_of_the_logits(engine):
    [ours] = engine.nll([IDS])
    assert ours.shape == (len(IDS) - 1,) and ours.dtype == np.float32
    assert np.allclose(ours, nll_of(engine.logits(IDS), IDS), atol=2e-5)


@pytest.mark.parametrize("first", [1, 33, len(IDS) - 1])
def test_predictions_are_the_logits_of_every_window(engine, first, monkeypatch):
    monkeypatch.setattr("qeval.engines.llamacpp._LOGITS_BYTES", 4 * 512 * 64)  # in pieces
    windows = [IDS, IDS[::-1], IDS]
    found, nll = engine.predictions(windows, first=first), engine.nll(windows, first=first)
    for ids, rows, expected in zip(windows, found, nll, strict=True):
        assert rows.shape == (len(ids) - first, engine.vocab_size)
        assert_same_up_to_f16(rows, engine.logits(ids)[first - 1 : -1])
        log_p = rows - np.log(np.exp(rows).sum(-1, keepdims=True))
        assert np.allclose(-log_p[range(len(rows)), ids[first:]], expected, atol=2e-5)


def test_predictions_begin_where_each_window_says_and_no_other_logits_are_computed(engine, monkeypatch):
    windows, first = [IDS, IDS[::-1], IDS[5:40], IDS[2:21]], [90, 95, 30, 1]
    computed, decode = [], llamacpp._decode

    def spy(context, parts, start, scored):
        computed.append(sum(scored))
        return decode(context, parts, start, scored)

    monkeypatch.setattr(llamacpp, "_decode", spy)
    found = list(engine.predictions(windows, first=first))
    assert sum(computed) == sum(map(len, found)) == 6 + 1 + 5 + 18
    for ids, start, rows in zip(windows, first, found, strict=True):
        assert rows.shape == (len(ids) - start, engine.vocab_size)
        assert_same_up_to_f16(rows, engine.logits(ids)[start - 1 : -1])


@pytest.mark.parametrize("first", [1, 2, 33, 95])
def test_first_gives_the_tail_of_the_same_numbers(engine, first):
    [whole], [tail] = engine.nll([IDS]), engine.nll([IDS], first=first)
    assert np.allclose(tail, whole[first - 1 :], atol=1e-5)


def test_windows_of_one_batch_do_not_see_each_other(engine):
    first, _, last = engine.nll([IDS, IDS[::-1], IDS[5:]])
    again, _, same = engine.nll([IDS, IDS[40:] + IDS[:40], IDS[5:]])
    assert (first == again).all() and (last == same).all()  # exactly: only a neighbour changed


def test_windows_of_one_batch_score_as_alone(engine):
    windows = [IDS, IDS[::-1], IDS[5:60], IDS[:2], IDS[40:], IDS[10:91]]  # of different lengths
    together = list(engine.nll(windows))
    alone = [next(iter(engine.nll([window]))) for window in windows]
    assert [len(x) for x in together] == [len(w) - 1 for w in windows]
    for a, b in zip(together, alone, strict=True):
        assert_same_up_to_f16(a, b)


def test_small_batches_and_small_logit_buffers_change_nothing(tiny_f32, engine, monkeypatch):
    windows = [IDS, IDS[::-1], IDS[3:]]
    usual = np.concatenate(list(engine.nll(windows, first=7)))
    monkeypatch.setattr(llamacpp, "_LOGITS_BYTES", 4 * 512 * 10)  # ten rows
    few = LlamaCppEngine.open(tiny_f32, EngineSettings(device="cpu", n_threads=1, batch_size=2))
    assert_same_up_to_f16(np.concatenate(list(few.nll(windows, first=7))), usual)
    assert_same_up_to_f16(few.logits(IDS), engine.logits(IDS))
    few.close()


def test_batch_size_changes_not_one_bit(tiny_f32):
    """Five windows of 512 do not fit one batch of 2,048 tokens: none may be cut up to fit more in."""
    rng = np.random.default_rng(1)
    windows = [[int(i) for i in rng.integers(1, 512, 512)] for _ in range(5)]
    found = []
    for size in (None, 1, 3, 64):
        engine = LlamaCppEngine.open(tiny_f32, EngineSettings("cpu", n_threads=1, batch_size=size))
        found.append(np.concatenate(list(engine.nll(windows, first=257))))
        engine.close()
    assert all(np.array_equal(nll, found[0]) for nll in found[1:])


def test_steps_through_the_cache_equal_one_pass(engine):
    trace = engine.steps(IDS)
    [once] = engine.nll([IDS])
    assert trace.nll.shape == (len(IDS) - 1,) and trace.seconds.shape == (len(IDS),)
    assert_same_up_to_f16(trace.nll, once)
    assert (trace.seconds > 0).all()


def test_no_windows_and_no_prompts_give_nothing(engine):
    assert list(engine.nll([])) == [] and list(engine.generate([], Sampling())) == []


def test_a_token_outside_the_vocabulary_is_one_line(engine):
    for ids in ([1, 2, 512], [1, -1, 2]):
        with pytest.raises(EngineError, match=r"token id \S+ is outside the vocabulary"):
            list(engine.nll([ids]))
        with pytest.raises(EngineError, match=r"token id \S+ is outside the vocabulary"):
            list(engine.generate([ids], Sampling()))


@settings(max_examples=50, deadline=None)
@given(
    n=st.integers(1, 40),
    vocab=st.integers(2, 300),
    scale=st.sampled_from([0.1, 5.0, 80.0]),
    seed=st.integers(0, 99),
)
def test_token_nll_equals_the_float64_formula(n, vocab, scale, seed):
    rng = np.random.default_rng(seed)
    logits = (scale * rng.standard_normal((n, vocab))).astype(np.float32)
    targets = rng.integers(0, vocab, n).astype(np.int32)
    expected = -log_softmax(logits)[np.arange(n), targets]
    with ThreadPoolExecutor(2) as pool:
        assert np.allclose(token_nll(logits, targets, pool), expected, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_token_nll_passes_on_what_is_not_finite(bad):
    logits = np.zeros((2, 5), np.float32)
    logits[1, 3] = bad
    with ThreadPoolExecutor(1) as pool:
        nll = token_nll(logits, np.zeros(2, np.int32), pool)
    assert nll[0] == pytest.approx(math.log(5)) and not np.isfinite(nll[1])


# ---- generating


def torch_greedy(model, ids: list[int], n: int) -> list[int]:
    new: list[int] = []
    for _ in range(n):
        new.append(int(torch_logits(model, ids + new)[-1].argmax()))
    return new


def by_place(completions) -> dict[tuple[int, int], list[int]]:
    return {(c.prompt, c.sample): c.ids for c in completions}


PROMPTS = [IDS[:9], IDS[20:21], IDS[30:63], IDS[70:74]]


def test_greedy_equals_transformers(engine, torch_model):
    done = list(engine.generate(PROMPTS, Sampling(max_new_tokens=12)))
    assert by_place(done) == {(i, 0): torch_greedy(torch_model, p, 12) for i, p in enumerate(PROMPTS)}
    assert {c.finish for c in done} == {"length"}


@pytest.mark.parametrize("at_once", [1, 3])
def test_the_number_of_slots_does_not_change_greedy_text(engine, at_once):
    usual = by_place(engine.generate(PROMPTS, Sampling(max_new_tokens=10)))
    assert by_place(engine.generate(PROMPTS, Sampling(max_new_tokens=10, at_once=at_once))) == usual


def test_a_stop_id_ends_the_text_and_is_left_out(engine):
    [plain] = engine.generate([PROMPTS[0]], Sampling(max_new_tokens=8))
    stop_id = plain.ids[3]
    [cut] = engine.generate([PROMPTS[0]], Sampling(max_new_tokens=8, stop_ids=(stop_id,)))
    assert (cut.ids, cut.finish) == (plain.ids[: plain.ids.index(stop_id)], "eos")


def test_stop_sees_every_token_and_keeps_them(engine):
    seen: list[int] = []

    def stop(ids: list[int]) -> bool:
        seen.append(len(ids))
        return len(ids) == 5

    [done] = engine.generate([PROMPTS[0]], Sampling(max_new_tokens=9), stop)
    assert (len(done.ids), done.finish, seen) == (5, "stop", [1, 2, 3, 4, 5])


def test_a_sample_hangs_on_nothing_but_seed_prompt_and_number(engine):
    usual = Sampling(n=4, temperature=1.0, top_p=0.95, max_new_tokens=8, seed=3)
    first = by_place(engine.generate(PROMPTS, usual))
    for at_once in (1, 3):
        slots = replace(usual, at_once=at_once)
        assert by_place(engine.generate(PROMPTS, slots)) == first
    backwards = by_place(engine.generate(PROMPTS[::-1], usual))
    assert {(3 - p, s): ids for (p, s), ids in backwards.items()} == first
    some = by_place(engine.generate(PROMPTS[1:2], replace(usual, n=2, samples=(3, 1))))
    assert some == {(0, s): first[1, s] for s in (1, 3)}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_end_a_sequence(engine, monkeypatch, temperature, value):
    """The third token's, of one sequence of two."""
    calls, logits = [], llama.Context.logits

    def spoil(context, n):
        rows = logits(context, n)
        calls.append(n)
        if len(calls) == 3:
            rows[1, 400] = value
        return rows

    monkeypatch.setattr(llama.Context, "logits", spoil)
    sampling = Sampling(max_new_tokens=6, temperature=temperature)
    done = {c.prompt: c for c in engine.generate(PROMPTS[:2], sampling)}
    assert (done[0].finish, len(done[0].ids)) == ("length", 6)
    assert (done[1].finish, len(done[1].ids)) == ("nonfinite", 2)


@pytest.mark.parametrize("bad", [None, 0, 7])
def test_scales_that_are_not_finite_are_found(tmp_path, monkeypatch, bad):
    """Eight blocks of Q8_0, each a float16 scale and 32 integers, read three at a time."""
    monkeypatch.setattr(llama, "_CHECKED_BYTES", 3 * 34)
    blocks = np.zeros((8, 34), np.uint8)
    if bad is not None:
        blocks[bad, :2] = np.array([np.inf], np.float16).view(np.uint8)
    (tmp_path / "data").write_bytes(b"12345" + blocks.tobytes())
    tensor = GgufTensor("a", (256,), "Q8_0", 8 * 34, tmp_path / "data", 5)
    assert llama.nonfinite([tensor]) == (["a"] if bad is not None else [])


@pytest.mark.parametrize("kind", ["F32", "F16"])
def test_weights_that_are_not_finite_are_named(tiny_llama, build_gguf, engine, tmp_path, kind):
    """7e4 is more than float16 holds."""
    from safetensors.torch import load_file, save_file

    assert engine.notes() == ()
    folder = shutil.copytree(tiny_llama, tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = 7e4 if kind == "F16" else math.inf
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    spoiled = LlamaCppEngine.open(build_gguf(folder, kind, tmp_path / "out"), CPU)
    assert spoiled.notes() == ("weights that are not finite (NaN, infinity): blk.1.ffn_up.weight",)
    done = list(spoiled.generate(PROMPTS, Sampling(max_new_tokens=4)))
    assert {(c.finish, len(c.ids)) for c in done} == {("nonfinite", 0)}
    spoiled.close()


@pytest.fixture
def taking_turns(engine, monkeypatch):
    """The engine as on a GPU: two lanes, each computed beside the thread that draws."""
    monkeypatch.setattr(engine, "_ahead", True)
    monkeypatch.setattr(llamacpp, "_TWO_LANES", 2)
    return engine


@pytest.mark.parametrize("at_once", [2, 5, None])
@pytest.mark.parametrize("n", [1, 5])
def test_two_lanes_give_the_samples_of_one(engine, monkeypatch, at_once, n):
    """With stops, a prompt of one token, and more samples than slots."""
    sampling = Sampling(n=n, temperature=1.0, top_p=0.9, max_new_tokens=9, seed=7, at_once=at_once)

    def stop(ids: list[int]) -> bool:
        return sum(ids) % 11 == 0

    def finished() -> dict[tuple[int, int], tuple[list[int], str]]:
        done = list(engine.generate(PROMPTS * 2, sampling, stop))
        assert len(done) == len(PROMPTS) * 2 * n
        return {(c.prompt, c.sample): (c.ids, c.finish) for c in done}

    usual = finished()
    assert {finish for _, finish in usual.values()} == {"stop", "length"}
    monkeypatch.setattr(engine, "_ahead", True)
    monkeypatch.setattr(llamacpp, "_TWO_LANES", 2)
    assert finished() == usual
    assert engine.facts()["generation"]["lanes"] == 2


def test_two_contexts_score_as_one(engine, taking_turns, monkeypatch):
    windows = [IDS, IDS[::-1], IDS[5:60], IDS[:2], IDS[40:], IDS[10:91]]
    monkeypatch.setattr(llama, "N_BATCH", 200)  # two windows at once
    found = list(taking_turns.nll(windows, first=2))
    monkeypatch.setattr(engine, "_ahead", False)
    assert all(map(np.array_equal, found, engine.nll(windows, first=2)))


def test_prompts_longer_than_a_batch(engine, monkeypatch):
    prompts = [IDS[:70], IDS[20:21], IDS[3:93]]
    for n in (1, 3):
        sampling = Sampling(n=n, temperature=1.0, max_new_tokens=5, at_once=2)
        usual = by_place(engine.generate(prompts, sampling))
        with monkeypatch.context() as patch:
            patch.setattr(llama, "N_BATCH", 32)
            assert by_place(engine.generate(prompts, sampling)) == usual


def test_a_caller_that_leaves_early_leaves_nothing_running(taking_turns):
    sampling = Sampling(n=8, temperature=1.0, max_new_tokens=5)
    next(taking_turns.generate(PROMPTS, sampling, lambda ids: len(ids) == 2))
    assert len(list(taking_turns.generate(PROMPTS, sampling))) == 32


def test_slots_are_as_many_as_the_memory_holds(engine, monkeypatch):
    one = 2 * 2 * 32 * 2 * 256  # bytes of a sequence: padded to 256 tokens
    for memory, expected in ((0, 1), (2 * 5 * one, 3), (10**12, llama.MAX_SEQUENCES - 2)):
        monkeypatch.setattr(llama, "free_memory", lambda device, m=memory: m)
        list(engine.generate([IDS[:9]], Sampling(n=300, temperature=1.0, max_new_tokens=1)))
        assert engine.facts()["generation"] == {"slots": expected, "lanes": 1, "tokens": 10}


def test_samples_are_reproducible_and_differ(engine):
    sampling = Sampling(n=6, temperature=1.0, top_p=0.95, max_new_tokens=8, seed=3, at_once=4)
    first = by_place(engine.generate(PROMPTS[:2], sampling))
    assert len(first) == 12 and len({tuple(ids) for ids in first.values()}) > 8
    assert by_place(engine.generate(PROMPTS[:2], sampling)) == first
    other = Sampling(n=6, temperature=1.0, top_p=0.95, max_new_tokens=8, seed=4, at_once=4)
    assert by_place(engine.generate(PROMPTS[:2], other)) != first


def test_samples_follow_the_model_distribution(engine, torch_model):
    """The first token of 4,000 samples against the softmax at temperature 0.7."""
    n, prompt = 4000, PROMPTS[0]
    sampling = Sampling(n=n, temperature=0.7, max_new_tokens=1, at_once=64)
    drawn = [c.ids[0] for c in engine.generate([prompt], sampling)]
    expected = np.exp(log_softmax(torch_logits(torch_model, prompt)[-1] / 0.7))
    share = np.bincount(drawn, minlength=512) / n
    error = np.sqrt(expected * (1 - expected) / n)
    assert (np.abs(share - expected) < 5 * error + 2 / n).all()


def test_top_p_draws_only_from_the_nucleus(engine, torch_model):
    prompt = PROMPTS[2]
    p = np.exp(log_softmax(torch_logits(torch_model, prompt)[-1]))
    order = np.argsort(-p)
    nucleus = set(order[: int(np.searchsorted(np.cumsum(p[order]), 0.5)) + 1].tolist())
    sampling = Sampling(n=300, temperature=1.0, top_p=0.5, max_new_tokens=1, at_once=64)
    drawn = {c.ids[0] for c in engine.generate([prompt], sampling)}
    assert len(drawn) > 1 and drawn <= nucleus


def test_text_ends_at_the_model_context(engine):
    prompt = (IDS * 6)[:505]
    [done] = engine.generate([prompt], Sampling(max_new_tokens=50))
    assert done.finish == "length" and len(prompt) + len(done.ids) == engine.max_seq_len == 512


@pytest.mark.parametrize("size", [0, 512])
def test_prompts_that_cannot_run_are_refused(engine, size):
    with pytest.raises(EngineError, match=f"prompt 0 has {size} tokens"):
        list(engine.generate([[1] * size], Sampling()))


def test_seeds_are_31_bits_and_differ():
    prompts = [[1, 2, p] for p in range(10)] + [[12, p] for p in range(10)]
    seeds = {seed_of(s, p, i) for s in (-1, 0) for p in prompts for i in range(20)}
    assert len(seeds) == 800 and max(seeds) < 2**31
    assert seed_of(0, np.array([1, 2]), 3) == seed_of(0, (1, 2), 3)


# ---- what ran


def test_facts_say_what_ran(tiny_f32):
    engine = LlamaCppEngine.open(tiny_f32, EngineSettings(device="cpu", n_threads=10**6))
    assert engine.facts()["batch_size"] is None
    list(engine.generate(PROMPTS, Sampling(max_new_tokens=2, at_once=3)))
    assert engine.facts() == {
        "generation": {"slots": 3, "lanes": 1, "tokens": 35},
        "device": "cpu",
        "device_name": cpu_name(),
        "n_threads": usable_cores(),
        "batch_size": 3,
        "engine_version": f"llama-cpp-python {llama_cpp.__version__}",
    }
    list(engine.nll([IDS] * 5))
    assert engine.facts()["batch_size"] == 4
    engine.close()


def test_gpus_are_named(monkeypatch):
    monkeypatch.setattr(llama, "_gpus", lambda: ["NVIDIA H200", "NVIDIA H200"])
    assert llama.place("cuda") == ("cuda:0,1", "NVIDIA H200")
    assert llama.place("cuda:1") == ("cuda:1", "NVIDIA H200")
    monkeypatch.undo()
    assert all(llama._gpus()) and len(llama._gpus()) == _gpu_count()


def _gpu_count() -> int:
    import torch

    return torch.cuda.device_count() if llama.library().llama_supports_gpu_offload() else 0


# ---- loading


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("empty", "is empty"),
        ("text", "not a GGUF file"),
        ("header", "cannot load it"),
        ("cut", "not within the file bounds"),
        ("architecture", "unknown model architecture: 'lxama'"),
    ],
)
def test_a_broken_file_is_one_line(tiny_f32, tmp_path, capfd, damage, kind, says):
    path = damage(kind, tiny_f32.path, tmp_path / "model.gguf")
    with pytest.raises(EngineError, match=says) as caught:
        LlamaCppEngine.open(Artifact(path, "llamacpp", False, 0, 0, None, None), CPU)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(EngineError, match="cannot be read"):
        LlamaCppEngine.open(Artifact(tmp_path / "x.gguf", "llamacpp", False, 0, 0, None, None), CPU)


def test_a_gpu_that_is_not_there_is_one_line(tiny_f32):
    from qeval.llama.library import library

    if library().llama_supports_gpu_offload():
        pytest.skip("this machine has a GPU that llama.cpp can use")
    with pytest.raises(EngineError, match="sees no GPU"):
        LlamaCppEngine.open(tiny_f32, EngineSettings(device="cuda"))


def test_importing_the_engine_imports_no_backend():
    code = (
        "import sys, qeval.engines.llamacpp, qeval.quant.gguf\n"
        "print([m for m in ('torch', 'transformers', 'llama_cpp', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- memory


def test_memory_counts_every_stored_byte(engine, tiny_f32):
    report = engine.memory(100)
    n_params = 2 * 512 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 172 + 2 * 64) + 64
    assert report.weights + report.embeddings == 4 * n_params
    assert report.embeddings == 4 * 2 * 512 * 64
    # 2 layers x 2 K/V heads x (16 + 16) x 2 bytes x 100 tokens
    assert (report.kv_cache, report.context) == (2 * 2 * 32 * 2 * 100, 100)
    assert tiny_f32.weight_bytes == report.weights


# ---- a trained model


def test_the_same_trained_model_in_both_engines(stories260k, shared, cache_dir, tmp_path):
    """Perplexity of 8 windows of WikiText-2. (The tokens are the folder's: of a sentencepiece model
    without tokenizer.model the converter loses the order of merges, and llama.cpp's ids drift.)"""
    import torch
    from transformers import AutoModelForCausalLM

    from qeval.models.tokenizer import HfTokenizer

    ref = ModelRef("s", stories260k, "sha256:s", "float32")
    out = tmp_path / "out"
    out.mkdir()
    context = BuildContext(ref, out, None, lambda _: [], lambda *_: None, cache_dir, "cpu", 1)
    artifact = Gguf().build(GgufOptions(type="F32"), context)
    text = (shared / "data" / "wikitext2" / "wiki.test.raw").read_text(encoding="utf-8")[:20_000]
    ids = HfTokenizer(ref).encode(text)
    engine = LlamaCppEngine.open(artifact, CPU)
    assert engine.tokenize("Once upon a time") == HfTokenizer(ref).encode("Once upon a time")
    windows = [ids[i * 512 : (i + 1) * 512] for i in range(8)]
    ours = np.concatenate(list(engine.nll(windows, first=257)))
    engine.close()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(stories260k, dtype=torch.float32).eval()
    theirs = np.concatenate([nll_of(torch_logits(model, w), w)[256:] for w in windows])
    assert math.exp(ours.mean()) == pytest.approx(math.exp(theirs.mean()), rel=1e-4)


@pytest.mark.parametrize(
    ("of_model", "of_engine", "longest", "noted"),
    [
        (0, 0, 4096, None),
        (32, 0, 128, "the model's sliding window is 32 and llama.cpp attends to all tokens"),
        (32, 0, 33, "sequences of up to 33 tokens"),
        (32, 0, 32, None),  # the first token is still in the last one's window
        (32, 32, 128, None),
        (512, 4096, 600, "llama.cpp attends to 4096 tokens"),
        (0, 4096, 8192, None),  # of a file that does not say: llama.cpp knows better
    ],
)
def test_attention_that_reaches_elsewhere_than_the_models_is_noted(of_model, of_engine, longest, noted):
    note = window_note(of_model, of_engine, longest)
    assert note is None if noted is None else noted in note


@pytest.fixture(scope="module")
def sliding(tiny_llama, build_gguf, tmp_path_factory) -> Artifact:
    """A Mistral with a window of 32 tokens; llama.cpp has none for its architecture."""
    from transformers import MistralConfig, MistralForCausalLM

    folder = tmp_path_factory.mktemp("models") / "mistral"
    config = MistralConfig.from_pretrained(tiny_llama, sliding_window=32)
    MistralForCausalLM(config).save_pretrained(folder)
    for file in tiny_llama.glob("tokenizer*"):
        shutil.copy(file, folder)
    return build_gguf(folder, "F32", tmp_path_factory.mktemp("gguf") / "mistral")


def test_a_window_that_llamacpp_does_not_slide_is_noted_where_it_matters(sliding):
    assert sliding.details["sliding_window"] == 32
    with closing(LlamaCppEngine.open(sliding, EngineSettings("cpu", n_threads=1))) as engine:
        list(engine.nll([list(range(1, 31))]))
        assert engine.notes() == ()
        list(engine.nll([list(range(1, 101))]))
        assert any(
            "up to 100 tokens, where the model's sliding window is 32" in n for n in engine.notes()
        )
