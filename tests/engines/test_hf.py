"""The transformers engine against transformers itself."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from qeval.core.cores import usable_cores
from qeval.core.errors import EngineError
from qeval.core.provenance import cpu_name
from qeval.core.settings import EngineSettings
from qeval.engines.base import Sampling
from qeval.engines.hf import HfEngine
from qeval.formats.describe import describe_folder
from qeval.models.loading import load_model

WINDOWS = [[(7 * i + 13 * j) % 512 for i in range(48)] for j in range(5)]


def open_lm(folder: Path, **settings) -> HfEngine:
    return HfEngine.open(
        describe_folder(folder, "float32"), EngineSettings(device="cpu", dtype="float32", **settings)
    )


@pytest.fixture(scope="module")
def lm(tiny_llama):
    return open_lm(tiny_llama)


@pytest.fixture(scope="module")
def reference(tiny_llama):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()


@pytest.mark.parametrize("first", [1, 2, 25, 47])
def test_nll_is_the_cross_entropy_of_transformers_own_logits(lm, reference, first):
    got = list(lm.nll(WINDOWS, first=first))
    for ids, nll in zip(WINDOWS, got, strict=True):
        with torch.inference_mode():
            logits = reference(torch.tensor([ids])).logits[0]
        expected = torch.nn.functional.cross_entropy(
            logits[first - 1 : -1], torch.tensor(ids[first:]), reduction="none"
        )
        assert nll.shape == (len(ids) - first,)
        assert nll.dtype == np.float32
        np.testing.assert_allclose(nll, expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 0.02), ("bfloat16", 0.15)])
def test_half_precision_is_near_float32(tiny_llama, lm, dtype, tolerance):
    artifact = describe_folder(tiny_llama, dtype)
    half = HfEngine.open(artifact, EngineSettings(device="cpu", dtype=dtype))
    for ours, full in zip(half.nll(WINDOWS), lm.nll(WINDOWS), strict=True):
        assert ours.dtype == np.float32
        assert 0 < np.abs(ours - full).max() < tolerance


def test_logits_and_nll_agree(lm):
    logits = torch.tensor(lm.logits(WINDOWS[0]))
    assert logits.shape == (48, 512)
    nll = -logits.log_softmax(-1)[range(47), WINDOWS[0][1:]]
    np.testing.assert_allclose(next(lm.nll(WINDOWS[:1])), nll.numpy(), rtol=1e-4, atol=1e-5)


def test_predictions_are_the_logits_of_every_window(lm):
    windows = [WINDOWS[0][:20], *WINDOWS[1:3]]
    for ids, rows in zip(windows, lm.predictions(windows, first=9), strict=True):
        assert rows.shape == (len(ids) - 9, 512)
        np.testing.assert_allclose(rows.numpy(), lm.logits(ids)[8:-1], rtol=1e-4, atol=1e-5)


def test_predictions_begin_where_each_window_says_and_no_other_logits_are_computed(lm):
    windows = [WINDOWS[0], WINDOWS[1], WINDOWS[2][:20], WINDOWS[3][:20], WINDOWS[4][:20]]
    first, computed = [40, 40, 19, 16, 16], []
    head = lm._model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _module, _args, out: computed.append(tuple(out.shape[:2])))
    found = list(lm.predictions(windows, first=first))
    hook.remove()
    for ids, start, rows in zip(windows, first, found, strict=True):
        assert rows.shape == (len(ids) - start, 512)
        np.testing.assert_allclose(rows.numpy(), lm.logits(ids)[start - 1 : -1], rtol=1e-4, atol=1e-5)
    assert computed[-3:] == [(2, 8), (1, 1), (2, 4)]  # before: is the model causal?


def test_a_window_may_be_one_token_longer_than_the_model_takes(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=512, n_positions=47, n_embd=16, n_layer=1, n_head=2)
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path)
    lm = open_lm(tmp_path)
    assert lm.max_seq_len == 47 and len(WINDOWS[0]) == 48
    (rows,) = lm.predictions(WINDOWS[:1], first=45)
    with torch.inference_mode():
        expected = model(torch.tensor([WINDOWS[0][:-1]])).logits[0, 44:]
    np.testing.assert_allclose(rows.numpy(), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_windows_of_unequal_length_keep_their_order(lm):
    windows = [WINDOWS[0][:20], WINDOWS[1], WINDOWS[2][:20], WINDOWS[3]]
    together = list(lm.nll(windows))
    assert [len(x) for x in together] == [19, 47, 19, 47]
    for ids, nll in zip(windows, together, strict=True):
        np.testing.assert_allclose(nll, next(lm.nll([ids])), rtol=1e-4, atol=1e-5)


def test_batch_size_changes_no_number(tiny_llama, lm):
    one = list(open_lm(tiny_llama, batch_size=1).nll(WINDOWS))
    np.testing.assert_allclose(one, list(lm.nll(WINDOWS)), rtol=1e-4, atol=1e-5)


def test_a_large_batch_size_does_not_outgrow_the_token_budget(tiny_llama, monkeypatch):
    monkeypatch.setattr("qeval.engines.hf._TOKENS_AT_ONCE", {"cpu": 100})
    sizes = {
        n: [len(b) for b, _ in open_lm(tiny_llama, batch_size=n)._batches(WINDOWS, 1)] for n in (1, 64)
    }
    assert sizes == {1: [1, 1, 1, 1, 1], 64: [2, 2, 1]}


def test_steps_through_the_cache_equal_one_forward(lm):
    trace = lm.steps(WINDOWS[0])
    np.testing.assert_allclose(trace.nll, next(lm.nll(WINDOWS[:1])), rtol=1e-4, atol=1e-5)
    assert len(trace.seconds) == 48
    assert trace.allocated is None


def test_greedy_generation_equals_transformers(lm, reference):
    prompts = [WINDOWS[0][:9], WINDOWS[1][:17], WINDOWS[2][:4]]  # unequal: padded on the left
    got = {c.prompt: c for c in lm.generate(prompts, Sampling(max_new_tokens=12))}
    for i, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        out = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),  # without it every token 0 counts as padding
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert got[i].ids == out[0, len(prompt) :].tolist()
        assert got[i].finish == "length"


def test_a_stop_id_ends_a_sequence_and_is_not_part_of_it(lm):
    prompt = WINDOWS[0][:9]
    (free,) = lm.generate([prompt], Sampling(max_new_tokens=10))
    end = next(i for i, t in enumerate(free.ids) if t not in free.ids[:i] and i > 2)
    (cut,) = lm.generate([prompt], Sampling(max_new_tokens=10, stop_ids=(free.ids[end],)))
    assert cut.ids == free.ids[:end]
    assert cut.finish == "eos"


def test_a_stop_function_ends_each_sequence_on_its_own(lm):
    prompts = [WINDOWS[0][:9], WINDOWS[1][:9]]
    first = {c.prompt: c.ids for c in lm.generate(prompts, Sampling(max_new_tokens=10))}
    ends = {tuple(first[0][:3]): True}
    got = {
        c.prompt: c
        for c in lm.generate(prompts, Sampling(max_new_tokens=10), lambda ids: tuple(ids) in ends)
    }
    assert (got[0].ids, got[0].finish) == (first[0][:3], "stop")
    assert (got[1].ids, got[1].finish) == (first[1], "length")


def test_samples_differ_and_a_seed_repeats_them(lm):
    sampling = Sampling(n=6, temperature=1.0, top_p=0.95, max_new_tokens=8, seed=3)
    runs = [
        {(c.prompt, c.sample): c.ids for c in lm.generate([WINDOWS[0][:9]], sampling)} for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert set(runs[0]) == {(0, s) for s in range(6)}
    assert len({tuple(ids) for ids in runs[0].values()}) > 1


def test_facts_say_what_ran(tiny_llama):
    lm = open_lm(tiny_llama, n_threads=10**6)  # no more than there are cores to use
    assert lm.facts()["batch_size"] is None
    list(lm.nll([ids[:9] for ids in WINDOWS]))
    assert lm.facts() == {
        "device": "cpu",
        "device_name": cpu_name(),
        "n_threads": torch.get_num_threads(),
        "batch_size": 5,
        "engine_version": f"torch {torch.__version__}, transformers {transformers.__version__}",
    }
    assert torch.get_num_threads() <= usable_cores()
    assert open_lm(tiny_llama, n_threads=1).facts()["n_threads"] == 1 == torch.get_num_threads()


def test_memory_counts_the_cache_of_grouped_queries(lm):
    report = lm.memory(100)
    assert report.kv_cache == 2 * 2 * 2 * 16 * 100 * 4  # k and v, layers, kv heads, head_dim, tokens
    assert report.embeddings == 2 * 512 * 64 * 4
    assert report.vram_allocated is None
    assert lm.max_seq_len == 512


def test_missing_weights_are_an_error_and_not_random_numbers(tiny_llama, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_llama, tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        EngineError, match=r"1 missing keys in its weights, first model\.layers\.1\.mlp\.up"
    ):
        load_model(folder, "float32", "cpu")


def test_an_unknown_architecture_is_one_line(tiny_llama, tmp_path):
    import shutil

    folder = shutil.copytree(tiny_llama, tmp_path / "m")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"no_such_model"'))
    with pytest.raises(EngineError, match="transformers cannot load it") as caught:
        load_model(folder, "float32", "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"vocab_size": 256},
            r"weight is \[512, 64\] in its weights and \[256, 64\] by config.json, and 1 more do not",
        ),
        (
            {"intermediate_size": 100},
            r"mlp.down_proj.weight is \[64, 172\] in its weights and \[64, 100\]",
        ),
        ({"hidden_size": 63}, "transformers cannot load it: "),
        ({"num_attention_heads": 0}, "transformers cannot load it: "),
        ({"hidden_act": "foo"}, "transformers cannot load it: "),
        ({"num_hidden_layers": "x"}, "transformers cannot load it: "),
    ],
)
def test_a_configuration_that_is_not_the_weights_is_one_line(tiny_llama, tmp_path, changed, message):
    import json
    import shutil

    from qeval.models.loading import load_model

    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changed))
    with pytest.raises(EngineError, match=message) as caught:
        load_model(folder, "float32", "cpu")
    said = str(caught.value)
    assert said.startswith(str(folder)) and said.isprintable()
    assert "above report" not in said and not said.endswith(":")


@pytest.mark.parametrize(
    ("kind", "more", "window"),
    [
        ("llama", {}, None),
        ("mistral", {"sliding_window": 32}, 32),
        ("mistral", {"sliding_window": None}, None),
        ("starcoder2", {"sliding_window": 32}, 32),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 0}, 32),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 32}, None),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 99}, None),
        ("phi3", {"sliding_window": 2047, "pad_token_id": 0}, 2047),
        ("gemma2", {"sliding_window": 64}, 64),
    ],
)
def test_the_sliding_window_of_a_configuration(kind, more, window):
    from transformers import AutoConfig

    from qeval.models.loading import sliding_window

    assert sliding_window(AutoConfig.for_model(kind, **more)) == window
