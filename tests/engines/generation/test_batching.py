"""Continuous batching: slots, attention over them and what is drawn, fast ways against slow ones.

The tests of CUDA run where there is one: python -m pytest tests/engines/test_slots.py
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from families import FAMILIES, MIXTURES, make_model
from scipy.stats import chisquare

from qeval.engines.base import Sampling
from qeval.engines.generation import batching
from qeval.engines.generation.attention import _attention, attend
from qeval.engines.generation.batching import Batcher, batcher_for
from qeval.engines.generation.cache import NoSlots, Prefix, SlotCache, Step
from qeval.engines.generation.sampling import draw
from qeval.engines.generation.transformers_loop import take_no_advice

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=cuda)]
PROMPTS = [[(7 * i + 31 * j) % 250 + 3 for i in range(n)] for j, n in enumerate((40, 5, 1, 12))]


def batcher(kind: str = "llama", device: str = "cpu", dtype=torch.float32, **config) -> Batcher:
    model = make_model(kind, **config).to(device, dtype)
    take_no_advice(model)
    return Batcher(model, 128, lambda: None)


def texts(made: Batcher, sampling: Sampling, at_once: int | None = None, prompts=PROMPTS, stop=None):
    done = list(made.run(prompts, sampling, at_once, stop))
    found = {(c.prompt, c.sample): c.ids for c in done}
    assert len(found) == len(done) == len(prompts) * len(sampling.numbers)
    return found


def by_hand(model, ids: list[int], n: int) -> list[int]:
    new: list[int] = []
    for _ in range(n):
        with torch.inference_mode():
            fed = torch.tensor([[*ids, *new]], device=model.device)
            new.append(int(model(input_ids=fed, use_cache=False).logits[0, -1].argmax()))
    return new


# ---- every family of the table


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("device", DEVICES)
def test_greedy_ids_are_those_of_a_forward_of_the_whole(kind, device):
    """40 tokens and more: past mistral's window of 16."""
    made = batcher(kind, device)
    expected = {(i, 0): by_hand(made._model, ids, 12) for i, ids in enumerate(PROMPTS)}
    for at_once in (1, 3, None):
        assert texts(made, Sampling(max_new_tokens=12), at_once) == expected


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_of_the_table_is_found_to_fit(kind):
    model = make_model(kind)
    take_no_advice(model)
    found = batcher_for(model, 128, lambda: None, None, PROMPTS, exact=True)
    assert isinstance(found, Batcher), found


def test_a_model_that_answers_otherwise_in_slots_does_not_fit(monkeypatch):
    model = make_model("llama")
    monkeypatch.setattr(Step, "seen", lambda step, _: torch.ones(len(step.positions), step.columns) > 0)
    found = batcher_for(model, 128, lambda: None, None, PROMPTS, exact=True)
    assert isinstance(found, str) and found.startswith("logits apart by")


def test_a_model_that_rounds_more_than_usual_is_compared_with_its_own_decoding(monkeypatch):
    model = make_model("llama").to(torch.bfloat16)
    take_no_advice(model)
    trial, noise = 0.25, 0.2
    monkeypatch.setattr(Batcher, "trial", lambda *_: trial)
    assert Batcher(model, 128, lambda: None).noise(*PROMPTS) < 0.1
    monkeypatch.setattr(Batcher, "noise", lambda *_: noise)

    def fits() -> bool:
        return not isinstance(batcher_for(model, 128, lambda: None, None, PROMPTS, exact=False), str)

    assert fits()
    trial = 0.31
    assert not fits()
    trial, noise = 0.31, 0.5
    assert not fits()


# ---- samples


@pytest.mark.parametrize("device", DEVICES)
def test_a_sample_is_the_same_in_any_slot_beside_anything(device):
    made = batcher(device=device)
    sampling = Sampling(n=6, temperature=1.0, top_p=0.9, max_new_tokens=8, seed=3)
    usual = texts(made, sampling)
    assert len({tuple(ids) for ids in usual.values()}) > 18
    for at_once in (1, 2, 5):
        assert texts(made, sampling, at_once) == usual
    alone = texts(made, sampling, None, PROMPTS[1:2])
    assert alone == {(0, s): usual[1, s] for s in range(6)}


@pytest.mark.parametrize("device", DEVICES)
def test_first_tokens_follow_the_softmax(device):
    made = batcher(device=device)
    sampling = Sampling(n=4000, temperature=0.8, max_new_tokens=1)
    first = torch.tensor([ids[0] for ids in texts(made, sampling, None, PROMPTS[:1]).values()])
    with torch.inference_mode():
        ids = torch.tensor(PROMPTS[:1], device=device)
        p = (made._model(input_ids=ids).logits[0, -1].double().cpu() / 0.8).softmax(-1)
    likely = p > 5 / 4000
    counts = torch.bincount(first, minlength=len(p))
    seen = [*counts[likely].tolist(), int(counts[~likely].sum())]
    expected = [*(4000 * p[likely]).tolist(), float(4000 * p[~likely].sum())]
    assert chisquare(seen, expected).pvalue > 1e-3


@pytest.mark.parametrize("device", DEVICES)
def test_what_ends_a_sequence_ends_it_at_that_token(device):
    """On a GPU the next step has begun when the host sees it."""
    made = batcher(device=device)
    whole = texts(made, Sampling(n=5, temperature=1.0, max_new_tokens=12, seed=1))
    stop = lambda ids: len(ids) > 2 and ids[-1] % 3 == 0  # noqa: E731
    found = texts(made, Sampling(n=5, temperature=1.0, max_new_tokens=12, seed=1), 3, stop=stop)
    for key, ids in whole.items():
        ends = [i for i in range(len(ids)) if stop(ids[: i + 1])]
        assert found[key] == ids[: ends[0] + 1 if ends else None]
    end = whole[0, 0][3]
    ended = texts(made, Sampling(n=5, temperature=1.0, max_new_tokens=12, seed=1, stop_ids=(end,)), 2)
    for key, ids in whole.items():
        assert ended[key] == (ids[: ids.index(end)] if end in ids else ids)


def test_a_prompt_is_computed_once_and_rows_stay_together():
    made = batcher()
    widths: list[tuple[int, int]] = []
    made._model.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    texts(made, Sampling(n=3, temperature=1.0, max_new_tokens=4), 2)
    assert [n for _, n in widths if n > 1] == [39, 11, 4]
    steps = [rows for rows, n in widths if n == 1]
    assert sum(steps) == 4 * 3 * 4  # no row was computed for nothing
    assert len(steps) == 4 * 3 * 4 // 2


def test_where_memory_runs_out_half_as_many_rows_run(monkeypatch):
    made, whole = batcher(), batcher()
    step = batching._Pool.step

    def full(pool, rows):
        if len(rows) > 3 and rows[0].asked > 2:
            raise torch.OutOfMemoryError
        return step(pool, rows)

    sampling = Sampling(n=4, temperature=1.0, max_new_tokens=6)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    expected = texts(whole, sampling)
    monkeypatch.setattr(batching._Pool, "step", full)
    assert texts(made, sampling) == expected
    assert made.facts()["halved"] == 3  # 16, 8, 4, 2 rows
    assert any("memory ran out" in note for note in made.notes())
    monkeypatch.setattr(
        batching._Pool, "step", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError)
    )
    with pytest.raises(torch.OutOfMemoryError):
        texts(made, sampling)


def test_as_many_rows_run_as_memory_holds(monkeypatch):
    made = batcher()
    token = 2 * 2 * 2 * 16 * 4  # layers, keys and values, heads, dim, bytes
    sampling = Sampling(n=9, temperature=1.0, max_new_tokens=4)
    each = 256 * token + 16 * 256
    monkeypatch.setattr(batching, "available_memory", lambda: 2 * 5 * each + 1)
    expected = texts(batcher(), sampling, 36)
    assert texts(made, sampling) == expected
    assert made.facts()["slots"] == made.largest_batch == 5
    texts(made, Sampling(max_new_tokens=3), 2, PROMPTS[:2])
    assert made.facts()["slots"] == 5  # of the first run: two can take turns
    monkeypatch.setattr(batching, "available_memory", lambda: 0)
    assert texts(batcher(), sampling, None) == expected


# ---- the cache


def test_a_prefix_fills_a_slot_and_moves():
    model = make_model("mistral")  # a window of 16: transformers' cache keeps the last 15
    made = Batcher(model, 128, lambda: None)
    prefix = made.prefix(PROMPTS[0])
    cache = SlotCache(prefix, 3, 64, torch.device("cpu"))
    cache.hold(1, prefix)
    cache.move(1, 0, 40)
    keys = cache.layers[1].keys
    assert keys.shape == (3, 2, 64, 16)
    assert torch.equal(keys[0], keys[1]) and not keys[2].any() and not keys[:, :, 40:].any()
    assert not keys[0, :, :25].any() and keys[0, :, 25:40].all()
    assert prefix.token_bytes == 2 * 2 * 2 * 16 * 4  # layers, keys and values, heads, dim, bytes


def test_what_keeps_more_than_keys_and_values_has_no_slots():
    with pytest.raises(NoSlots, match="not transformers' own"):
        Prefix(object())
    with pytest.raises(NoSlots, match="more than keys and values"):
        Prefix(SimpleNamespace(layers=[SimpleNamespace()]))


def _call(**asked):
    module = SimpleNamespace(config=SimpleNamespace(**asked.pop("config", {})), layer_idx=0)
    q, k = torch.zeros(2, 4, 1, 8), torch.zeros(2, 2, 16, 8)
    return attend(module, q, k, k, None, **asked)


def test_attention_that_it_does_not_do_is_refused(monkeypatch):
    from qeval.engines.generation import attention

    monkeypatch.setattr(attention, "_step", Step(torch.tensor([3, 5]), 16))
    assert _call(is_causal=True, output_attentions=False)[0].shape == (2, 1, 4, 8)
    with pytest.raises(NoSlots, match="its attention takes position_bias"):
        _call(position_bias=torch.zeros(1))
    with pytest.raises(NoSlots, match="of a kind that is not known here: chunked"):
        _call(config={"layer_types": ["chunked_attention"]})
    for config in ({"layer_types": ["sliding_attention"]}, {"sliding_window": 4}):
        with pytest.raises(NoSlots, match="in a mask only"):
            _call(config=config)
        assert _call(config=config, sliding_window=4)
    assert _call(config={"sliding_window": 4, "use_sliding_window": False})


# ---- kernels against torch

SHAPES = [  # rows, key heads, group, d, d_v, columns, window, softcap, sinks
    (200, 4, 12, 128, 128, 512, 0, 0.0, False),
    (1, 2, 1, 16, 16, 70, 0, 0.0, False),
    (1, 4, 12, 128, 128, 3000, 700, 0.0, True),
    (5, 4, 3, 80, 64, 130, 16, 5.0, False),
    (3, 3, 3, 64, 64, 500, 0, 0.0, True),
    (2, 16, 1, 192, 128, 300, 0, 0.0, False),
]


@cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_of_attention_is_attention(shape, dtype):
    from qeval.engines.generation import kernels

    rows, heads, group, d, d_v, columns, window, softcap, with_sinks = shape
    torch.manual_seed(0)
    q = torch.randn(rows, heads, group, d, device="cuda", dtype=dtype)
    k = torch.randn(rows, heads, columns + 8, d, device="cuda", dtype=dtype)[:, :, :columns]
    v = torch.randn(rows, heads, columns + 8, d_v, device="cuda", dtype=dtype)[:, :, :columns]
    step = Step(torch.randint(0, columns, (rows,), device="cuda"), columns)
    sinks = torch.randn(heads * group, device="cuda", dtype=dtype) if with_sinks else None
    found = kernels.attention(q, k, v, step.positions, 0.1, window, softcap, sinks)
    seen = step.seen(window or None)[:, None, None]
    expected = _attention(q.double(), k.double(), v.double(), seen, 0.1, softcap or None, sinks)
    error = (found - expected).norm() / expected.norm()
    assert error < {torch.float32: 1e-5, torch.bfloat16: 6e-3, torch.float16: 1e-3}[dtype]


@cuda
def test_the_kernel_writes_where_scatter_does():
    from qeval.engines.generation import kernels

    torch.manual_seed(0)
    keys, values = torch.zeros(4, 2, 9, 24).cuda(), torch.zeros(4, 2, 9, 16).cuda()
    new = torch.randn(3, 1, 2, 40).cuda().transpose(1, 2)
    positions = torch.tensor([0, 8, 3]).cuda()
    kernels.write(keys, new[..., :24], values, new[..., 24:], positions)
    for row, at in enumerate(positions.tolist()):
        assert torch.equal(keys[row, :, at], new[row, :, 0, :24])
        assert torch.equal(values[row, :, at], new[row, :, 0, 24:])
    assert keys.count_nonzero() == 3 * 2 * 24 and values.count_nonzero() == 3 * 2 * 16


@cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("temperature", "top_p"), [(0.8, 0.95), (1, 1), (0.5, 0.3), (2, 0.999)])
@pytest.mark.parametrize("vocab", [100, 49152, 50257])
def test_the_kernel_draws_what_sorting_draws(dtype, temperature, top_p, vocab):
    """16-bit scores are full of equal ones. A number may fall on the edge between two tokens."""
    from qeval.engines.generation import kernels

    torch.manual_seed(0)
    scores = (2 * torch.randn(64, vocab, device="cuda")).to(dtype)
    u = torch.rand(64, dtype=torch.float64, device="cuda")
    u[0], u[1] = 0, 1 - 2.0**-53
    found = kernels.draw(scores, temperature, top_p, u)
    assert (found == draw(scores, temperature, top_p, u)).float().mean() > 0.96


@cuda
def test_the_kernel_takes_what_is_not_finite():
    from qeval.engines.generation import kernels

    scores = torch.full((3, 70), -torch.inf, device="cuda")
    scores[0, 5] = scores[1, 69] = 1.0
    scores[2] = torch.nan
    u = torch.full((3,), 0.7, dtype=torch.float64, device="cuda")
    for top_p in (0.9, 1.0):
        assert kernels.draw(scores, 1.0, top_p, u)[:2].tolist() == [5, 69]


@cuda
@pytest.mark.parametrize("kind", FAMILIES)
def test_captured_steps_are_the_steps(kind):
    """Sampled tokens of a float32 model, by graphs of compiled pieces and by plain operations."""
    made, plain = batcher(kind, "cuda"), batcher(kind, "cuda")
    plain._fewer._patches.clear()
    sampling = Sampling(n=9, temperature=1.0, top_p=0.95, max_new_tokens=20)
    found = texts(made, sampling, 8)
    plain._pool_of(8, 64, sampling).not_captured = "no"
    expected = texts(plain, sampling, 8)
    same = sum(found[key] == expected[key] for key in found) / len(found)
    assert same > 0.9
    captured = made.facts()["captured"]
    if kind in ("bloom", "falcon"):  # make their biases by position on the CPU, in every forward
        assert captured.startswith("no: Cannot copy between CPU and CUDA tensors")
    else:
        assert captured == "CUDA graphs" or kind in MIXTURES, captured
