"""What the torch engine generates, against an argmax loop by hand and against the distribution."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from qeval.core.errors import EngineError
from qeval.core.settings import EngineSettings
from qeval.engines.base import Sampling
from qeval.engines.generation.batching import Batcher
from qeval.engines.generation.sampling import draw
from qeval.engines.hf import HfEngine, token_nll
from qeval.formats.describe import describe_folder

VOCAB = 256
PROMPTS = [[(7 * i + 31 * j) % 250 + 3 for i in range(n)] for j, n in enumerate((40, 5, 12, 12))]


def open_lm(folder: Path, dtype: str = "float32", **settings) -> HfEngine:
    artifact = describe_folder(folder, dtype)
    return HfEngine.open(artifact, EngineSettings(device="cpu", dtype=dtype, n_threads=1, **settings))


def argmax_by_hand(model, ids: list[int], n: int) -> list[int]:
    """Without a cache, without a batch: one forward of the whole sequence a token."""
    new: list[int] = []
    for _ in range(n):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[*ids, *new]]), use_cache=False).logits
        new.append(int(logits[0, -1].argmax()))
    return new


def greedy(lm: HfEngine, n: int = 10, prompts=PROMPTS, **sampling) -> list[list[int]]:
    done = list(lm.generate(prompts, Sampling(max_new_tokens=n, **sampling)))
    assert {c.finish for c in done} == {"length"}
    return [c.ids for c in sorted(done, key=lambda c: c.prompt)]


# ---- a folder's files decide nothing

ADVICE = {
    "repetition": {"repetition_penalty": 1.3},
    "sampling": {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.8, "min_p": 0.1},
    "flat": {"temperature": 2.5},
    "lengths": {"min_new_tokens": 50, "min_length": 60, "max_length": 41, "max_new_tokens": 3},
    "words": {"bad_words_ids": [[i] for i in range(3, 200)], "suppress_tokens": list(range(100))},
    "first": {"begin_suppress_tokens": list(range(250)), "forced_bos_token_id": 7},
    "forced": {"forced_eos_token_id": 9, "exponential_decay_length_penalty": [2, 2.0]},
    "n-grams": {"no_repeat_ngram_size": 1, "encoder_no_repeat_ngram_size": 1},
    "beams": {"num_beams": 4, "length_penalty": 0.2, "early_stopping": True},
    "groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
    "returned": {"num_beams": 2, "num_return_sequences": 2, "return_dict_in_generate": True},
    "several greedy": {"num_return_sequences": 3},
    "stops": {"stop_strings": ["a", "e", " "], "max_time": 1e-9},
    "ends": {"eos_token_id": list(range(250))},
    "lookup": {"prompt_lookup_num_tokens": 3},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "layers": {"dola_layers": "high"},
    "watermark": {"watermarking_config": {"bias": 9.0, "greenlist_ratio": 0.25}},
    "guidance": {"guidance_scale": 3.0},
    "bias": {"sequence_bias": [[[5], 90.0]], "renormalize_logits": True, "remove_invalid_values": True},
    "cache": {"use_cache": False, "cache_implementation": "static"},
    "outputs": {"output_scores": True, "output_attentions": True, "output_hidden_states": True},
    "invalid": {"cache_implementation": "no such", "early_stopping": "perhaps", "max_new_tokens": 0},
    "unknown": {"no_such_setting": 1, "prefill_chunk_size": 2},
}


@pytest.fixture(scope="module")
def by_hand(tiny_llama):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    return [argmax_by_hand(model, ids, 10) for ids in PROMPTS]


def advised(source: Path, folder: Path, **said) -> Path:
    """A copy whose generation_config.json says ``said``."""
    shutil.copytree(source, folder)
    (folder / "generation_config.json").write_text(json.dumps(said))
    return folder


@pytest.mark.parametrize("name", ADVICE)
def test_greedy_is_argmax_whatever_generation_config_says(tiny_llama, by_hand, tmp_path, name):
    assert greedy(open_lm(advised(tiny_llama, tmp_path / "m", **ADVICE[name]))) == by_hand


def test_greedy_is_argmax_whatever_all_of_it_together_and_config_json_say(
    tiny_llama, by_hand, tmp_path
):
    everything = {key: value for said in ADVICE.values() for key, value in said.items()}
    folder = advised(tiny_llama, tmp_path / "m", **everything)
    config = json.loads((folder / "config.json").read_text())
    config |= {"use_cache": False, "output_hidden_states": True, "return_dict": False}
    config |= {"repetition_penalty": 1.7, "num_beams": 3, "temperature": 0.3, "min_length": 60}
    (folder / "config.json").write_text(json.dumps(config))
    lm = open_lm(folder)
    assert greedy(lm) == by_hand
    assert len(lm.steps(PROMPTS[1]).nll) == 4


def test_a_generate_of_the_folders_own_is_not_run(tiny_llama, by_hand, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "m")
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text("def generate(model, **_): 1 / 0\n")
    assert greedy(open_lm(folder, trust_remote_code=True)) == by_hand


def test_samples_are_those_of_a_folder_that_says_nothing(tiny_llama, tmp_path):
    sampling = Sampling(n=3, temperature=0.9, top_p=0.9, max_new_tokens=8)
    found = [
        sampled(open_lm(advised(tiny_llama, tmp_path / str(i), **said)), sampling)
        for i, said in enumerate(({}, ADVICE["sampling"], ADVICE["repetition"], ADVICE["words"]))
    ]
    assert all(texts == found[0] for texts in found)


@pytest.mark.parametrize("where", ["config.json", "generation_config.json", "text_config"])
def test_decoding_goes_through_a_cache_though_the_files_say_no(tiny_llama, tmp_path, where):
    lm = open_lm(advised(tiny_llama, tmp_path / "m", use_cache=False))
    if where == "config.json":
        lm = open_lm(with_config(tiny_llama, tmp_path / "c", use_cache=False))
    if where == "text_config":
        lm._model.config.get_text_config().use_cache = False
    lengths = []
    lm._model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    greedy(lm)
    lengths.clear()  # those of the trials, too
    greedy(lm)
    assert lengths == [39, 11, 11, 4, *[1] * 10]  # the prompts but for their last tokens


def with_config(source: Path, folder: Path, **said) -> Path:
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | said))
    return folder


# ---- every family, alone and in company

SMALL = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
FAMILIES = {
    "bart": {"d_model": 64, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64},
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4},
    "cpmant": {"hidden_size": 64, "num_attention_heads": 4, "dim_head": 16, "dim_ff": 64}
    | {"num_hidden_layers": 2, "prompt_length": 8, "prompt_types": 4},
    "ctrl": {"n_embd": 64, "n_layer": 2, "n_head": 4, "dff": 64, "n_positions": 128},
    "doge": SIZES,
    "falcon": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True},
    "gemma2": SIZES | {"head_dim": 16, "sliding_window": 16},
    "gpt2": GPT2,
    "lfm2": SIZES | {"layer_types": ["conv", "full_attention", "conv"]},
    "mamba": {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8},
    "mpt": {"d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 128},
    "openai-gpt": GPT2,
    "opt": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64}
    | {"word_embed_proj_dim": 32},
    "phi3": SIZES
    | {"original_max_position_embeddings": 64, "max_position_embeddings": 128}
    | {
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "long_factor": [3.0] * 8,
            "short_factor": [1.0] * 8,
            "partial_rotary_factor": 1.0,
        }
    },
    "qwen2_moe": SIZES | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "recurrent_gemma": SIZES | {"lru_width": 64, "attention_window_size": 16, "head_dim": 16},
    "rwkv": {"hidden_size": 64, "num_hidden_layers": 2, "attention_hidden_size": 64},
}
NO_CACHE = ("cpmant", "doge")  # transformers 5.17 answers otherwise through theirs
# What these keep is more than keys and values, or depends on what runs beside.
NO_SLOTS = ("bart", "cpmant", "doge", "lfm2", "mamba", "openai-gpt", "phi3", "recurrent_gemma", "rwkv")
NO_COMPANY = ("bart", "recurrent_gemma", "rwkv")  # and these beside a longer sequence


def make(kind: str, folder: Path) -> Path:
    """A model of random weights, those that begin as zeros and ones too."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL, **FAMILIES[kind]))
    for name, p in model.named_parameters():
        if p.dim() > 1 or "bias" in name:
            p.data += torch.randn_like(p) * (0.15 if p.dim() > 1 else 0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", params=FAMILIES)
def family(request, tmp_path_factory):
    """(kind, folder, argmax by hand)."""
    from transformers import AutoModelForCausalLM

    folder = make(request.param, tmp_path_factory.mktemp("families") / request.param)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return request.param, folder, [argmax_by_hand(model, ids, 10) for ids in PROMPTS]


def test_no_batch_size_changes_an_answer(family):
    kind, folder, expected = family
    for size in (1, 4):
        lm = open_lm(folder, batch_size=size)
        assert greedy(lm) == expected, size
        words = "generated without a cache: through that of transformers"
        assert [words in note for note in lm.notes()] == [True] * (kind in NO_CACHE)
    generation = lm.facts()["generation"]
    assert generation["loop"] == ("transformers" if kind in NO_SLOTS else "slots")
    if kind in NO_SLOTS:
        allowed = not lm._decoder._trials.notes() and lm._decoder._trials.may_pad(PROMPTS)
        assert allowed == (kind not in (*NO_CACHE, *NO_COMPANY, "phi3"))
        assert generation["why"]
        assert generation["cache"] == (kind not in NO_CACHE)


def test_what_a_cache_of_keys_and_values_is_asked_of(family):
    kind, folder, _ = family
    lm = open_lm(folder)
    if kind in ("mamba", "rwkv", "openai-gpt", "recurrent_gemma"):
        with pytest.raises(EngineError, match=rf"{kind} keeps no cache of keys and values .* take"):
            lm.steps(PROMPTS[1])
    elif kind not in NO_CACHE:
        np.testing.assert_allclose(
            lm.steps(PROMPTS[2]).nll, next(lm.nll([PROMPTS[2]])), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_is_not_taken_for_another_answer(tiny_llama, dtype):
    lm = open_lm(tiny_llama, dtype)
    greedy(lm)
    assert lm.facts()["generation"] == {"loop": "slots", "slots": 4, "tokens_a_slot": 256}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", NO_COMPANY)
def test_company_that_changes_answers_is_seen_through_rounding(tmp_path, kind, dtype):
    lm = open_lm(make(kind, tmp_path / "m"), dtype)
    greedy(lm)
    generation = lm.facts()["generation"]
    assert generation["cache"] and not (generation["batches"] and generation["padding"])


def test_the_trials_are_made_once(tiny_llama, monkeypatch):
    lm = open_lm(tiny_llama)
    greedy(lm)
    monkeypatch.setattr(Batcher, "trial", lambda *_: pytest.fail("tried again"))
    greedy(lm)


# ---- drawing


def sampled(lm, sampling: Sampling, prompts=PROMPTS) -> dict[tuple[int, int], list[int]]:
    return {(c.prompt, c.sample): c.ids for c in lm.generate(prompts, sampling)}


def test_a_sample_hangs_on_nothing_but_seed_prompt_and_number(tiny_llama):
    sampling = Sampling(n=4, temperature=1.0, top_p=0.9, max_new_tokens=8, seed=5)
    usual = sampled(open_lm(tiny_llama), sampling)
    assert len({tuple(ids) for ids in usual.values()}) > 12
    for size in (1, 3, 16):
        assert sampled(open_lm(tiny_llama, batch_size=size), sampling) == usual
    lm = open_lm(tiny_llama)
    backwards = sampled(lm, sampling, PROMPTS[::-1])
    assert {(3 - p, s): ids for (p, s), ids in backwards.items()} == usual
    some = Sampling(n=2, samples=(3, 1), temperature=1.0, top_p=0.9, max_new_tokens=8, seed=5)
    assert sampled(lm, some, PROMPTS[1:2]) == {(0, s): usual[1, s] for s in (1, 3)}
    other = Sampling(n=4, temperature=1.0, top_p=0.9, max_new_tokens=8, seed=6)
    assert sampled(lm, other) != usual


def test_draws_follow_the_distribution():
    """40,000 evenly spread numbers give each token its share, to one number at either end."""
    torch.manual_seed(0)
    scores = 3 * torch.randn(1, 50)
    u = (torch.arange(40_000, dtype=torch.float64) + 0.5) / 40_000
    for temperature in (0.5, 1.0, 2.0):
        drawn = draw(scores.expand(len(u), -1), temperature, 1.0, u)
        share = torch.bincount(drawn, minlength=50) / len(u)
        expected = (scores[0].double() / temperature).softmax(-1)
        assert (share - expected).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.3, [1]), (0.4, [1]), (0.41, [1, 3]), (0.75, [0, 1, 3]), (0.99, [0, 1, 2, 3])]
)
def test_the_nucleus_is_the_fewest_tokens_that_have_top_p(top_p, kept):
    p = torch.tensor([[0.25, 0.4, 0.05, 0.3]])
    u = torch.linspace(0, 0.9999999, 1000, dtype=torch.float64)
    drawn = draw(p.log().expand(1000, -1), 1.0, top_p, u)
    share = torch.bincount(drawn, minlength=4) / 1000
    assert [i for i in range(4) if share[i]] == kept
    expected = torch.zeros(4)
    expected[kept] = p[0, kept] / p[0, kept].sum()
    assert (share - expected).abs().max() < 0.003


def test_draws_at_the_ends_are_tokens_that_can_be():
    scores = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]])
    ends = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    assert draw(scores.expand(2, -1), 1.0, 1.0, ends).tolist() == [1, 3]
    assert draw(torch.full((1, 5), torch.nan), 1.0, 0.9, ends[:1]).item() in range(5)


# ---- the end of a sequence


def test_sequences_end_at_the_models_maximum_and_not_with_their_neighbours(tmp_path):
    """GPT-2 has no position past it; the short one goes on when the long one is full."""
    lm = open_lm(make("gpt2", tmp_path / "m"), batch_size=4)
    prompts = [PROMPTS[1], (PROMPTS[0] * 4)[:120], (PROMPTS[0] * 4)[:127]]
    sampling = Sampling(max_new_tokens=20)
    done = {c.prompt: c for c in lm.generate(prompts, sampling)}
    assert [len(done[i].ids) for i in range(3)] == [20, 8, 1]
    assert {c.finish for c in done.values()} == {"length"}
    alone = [next(lm.generate([ids], sampling)).ids for ids in prompts]
    assert [done[i].ids for i in range(3)] == alone


@pytest.mark.parametrize("size", [0, 512, 600])
def test_prompts_that_cannot_run_are_refused(tiny_llama, size):
    with pytest.raises(EngineError, match=f"prompt 0 has {size} tokens; .* takes 1 to 511"):
        list(open_lm(tiny_llama).generate([[1] * size], Sampling()))


def test_a_token_outside_the_vocabulary_is_one_line(tiny_llama):
    lm = open_lm(tiny_llama)
    for ids in ([1, 2, 512], [1, -1, 2]):
        with pytest.raises(
            EngineError, match=r"token id \S+ is outside the vocabulary of .* \(512 tokens"
        ):
            list(lm.nll([ids]))
        with pytest.raises(EngineError, match=r"token id \S+ is outside the vocabulary"):
            list(lm.generate([ids], Sampling()))


# ---- what is not finite


@pytest.fixture(scope="module")
def overflow(tiny_llama, tmp_path_factory):
    """Weights that float16 holds and products that it does not: NaN logits there, none in float32."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_llama, tmp_path_factory.mktemp("overflow") / "m")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] *= 2e4
    tensors["model.layers.1.mlp.gate_proj.weight"].abs_().mul_(50)
    tensors["model.layers.1.mlp.down_proj.weight"] /= 1e6
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_end_a_sequence(overflow, temperature):
    sampling = Sampling(n=2 if temperature else 1, temperature=temperature, max_new_tokens=6)
    done = list(open_lm(overflow, "float16").generate(PROMPTS, sampling))
    assert {(c.finish, tuple(c.ids)) for c in done} == {("nonfinite", ())}
    assert {c.finish for c in open_lm(overflow).generate(PROMPTS, sampling)} == {"length"}


def test_one_sequence_of_a_batch_may_break_alone(tiny_llama):
    lm = open_lm(tiny_llama)
    greedy(lm)  # the trials
    steps = iter(range(100))

    def spoil(_, __, out):
        if len(out.logits) == 2 and next(steps) == 2:  # prompts are computed one by one
            out.logits[1, -1, 17] = torch.inf

    lm._model.register_forward_hook(spoil)
    done = {c.prompt: c for c in lm.generate(PROMPTS[2:], Sampling(max_new_tokens=6))}
    assert (done[0].finish, len(done[0].ids)) == ("length", 6)
    assert (done[1].finish, len(done[1].ids)) == ("nonfinite", 2)


def test_weights_that_are_not_finite_are_named(tiny_llama, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_llama, tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 5] = 7e4
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert open_lm(folder).notes() == ()
    name = "model.layers.0.mlp.up_proj.weight"
    assert open_lm(folder, "float16").notes() == (
        f"weights that are not finite (NaN, infinity): {name}",
    )
    tensors["model.norm.weight"][0] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert open_lm(folder, "float16").notes()[0].endswith(f"{name} and 1 more")
    assert open_lm(folder).notes()[0].endswith(": model.norm.weight")


# ---- numerics of scoring


@pytest.mark.parametrize("vocab", [512, 49_152, 262_144])
def test_token_nll_is_exact_on_large_vocabularies(vocab):
    """To 2e-6 a token and without a bias: torch's cross_entropy is low by 1e-5 at 262,144 entries."""
    torch.manual_seed(0)
    logits, targets = 3 * torch.randn(32, vocab), torch.randint(0, vocab, (32,))
    expected = torch.nn.functional.cross_entropy(logits.double(), targets, reduction="none")
    error = token_nll(logits, targets).double() - expected
    assert error.abs().max() < 3e-6 and error.mean().abs() < 5e-7


def test_the_logits_of_a_batch_are_not_copied(tiny_llama, monkeypatch):
    lm, seen, stored = open_lm(tiny_llama), [], []
    lm._model.register_forward_hook(lambda _, __, out: stored.append(out.logits.untyped_storage()))

    def spy(logits, targets):
        seen.append(logits.untyped_storage().data_ptr())
        return token_nll(logits, targets)

    monkeypatch.setattr("qeval.engines.hf.token_nll", spy)
    assert len(list(lm.nll([PROMPTS[2]] * 3))) == 3
    assert (
        set(seen) == {stored[-1].data_ptr()} and len(seen) == 3
    )  # the first: the check that it is causal
