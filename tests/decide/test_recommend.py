"""Which row is recommended: laws on made-up candidates, then records as a run writes them."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from itertools import permutations

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from made_records import GIB, pass_at_1, ppl, record

from qeval.cli.main import cli
from qeval.core.errors import UsageError
from qeval.core.record import Conditions, MemoryReport, Metric, completed
from qeval.decide.need import Need
from qeval.decide.ranks import layers
from qeval.decide.recommend import Asked, Candidate, dominates, recommend
from qeval.decide.recommend_forms import sentences, text
from qeval.report.table import Entry
from qeval.store.records import Store

sizes = st.floats(0, 1e12)
needs = st.builds(
    Need,
    sizes,
    st.none() | st.floats(1, 1e6),
    st.none() | sizes,
    st.integers(1, 10**6),
    st.integers(1, 64),
)


@st.composite
def candidates(draw):
    """Few values each, so that ties are common."""
    n = draw(st.integers(1, 6))
    few = st.sampled_from([1.0, 2.0, 3.0])
    return [
        Candidate(
            f"row {i}",
            Need(draw(few), None, None, 1, 1),
            draw(st.booleans()),
            Entry(),
            draw(st.none() | st.integers(1, 3)),
            draw(st.none() | few),
            draw(st.booleans()),
        )
        for i in range(n)
    ]


# -- laws ---------------------------------------------------------------------------------------


@given(needs, sizes, sizes)
def test_a_row_never_loses_its_fit_when_memory_grows(need, one, other):
    small, large = sorted((one, other))
    assert (need.total <= small) <= (need.total <= large)
    assert need.largest_context(small) <= need.largest_context(large)


@given(needs, st.floats(1, 1e12))
def test_the_largest_context_fits_and_one_token_more_does_not(need, budget):
    if need.kv_token is None:
        return
    n = need.largest_context(budget)
    slack = 1e-9 * budget  # of floating point
    if n:
        assert replace(need, context=n).total <= budget + slack
    assert replace(need, context=n + 1).total > budget - slack


@given(candidates())
def test_what_is_recommended_is_never_dominated(rows):
    best = min(rows, key=lambda c: c.key)
    assert best.rank is None or not any(dominates(other, best) for other in rows)


@given(candidates())
def test_dominating_is_a_strict_order(rows):
    for a, b, c in permutations(rows, 3):
        assert not (dominates(a, b) and dominates(b, a))
        assert not (dominates(a, b) and dominates(b, c)) or dominates(a, c)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=8), st.floats(0.1, 5))
def test_no_row_beats_another_of_its_rank_and_each_lower_one_is_beaten_by_the_rank_above(values, least):
    beats = lambda a, b: values[a] < values[b] - least  # noqa: E731
    found = layers(range(len(values)), beats)
    for i, rank in found.items():
        assert not any(beats(j, i) for j, other in found.items() if other == rank)
        assert rank == 1 or any(beats(j, i) for j, other in found.items() if other == rank - 1)


# -- from records -----------------------------------------------------------------------------------

GPU = Conditions("box", "cuda:0", "NVIDIA H200", engine_version="1.0")
WINDOWS = [3.0, 3.2, 2.8, 3.1, 2.9, 3.3, 3.0, 2.7, 3.4, 3.1]
SIGNS = [1, 1, -1, -1, 1, -1, 1, -1, -1, 1]


def shifted(by: float) -> Metric:
    """A perplexity that is higher by the share ``by``, give or take 0.02% a window."""
    turn = round(1000 * by) % len(SIGNS)
    signs = SIGNS[turn:] + SIGNS[:turn]
    return ppl([w + math.log1p(by) + 0.0002 * s for w, s in zip(WINDOWS, signs, strict=True)])


def row(name: str, gib: float, by: float, speed: float | None, place: int, **fields):
    artifact = {"weight_bytes": int(gib * GIB), "embedding_bytes": GIB, "simulated": False, "notes": []}
    artifact |= fields.pop("artifact", {})
    over = fields.pop("over", 0.5)
    peak = int((gib + 1 + 0.25 + over) * GIB)
    memory = MemoryReport(kv_cache=GIB // 4, context=2048, vram_process=peak, rank=0)
    about = {"conditions": GPU, "artifact": artifact}
    yield record(name, "perplexity", [shifted(by)], order=(0, place, 0), **about)
    if speed is not None:
        found = Metric("decode_tok_s", speed, "speed/d128+64b1", "tok/s", n=3)
        yield record(name, "speed", [found], order=(0, place, 2), memory=memory, **about)


ROWS = [
    ("none", 14.0, 0.0, 20.0),
    ("Q8_0", 7.0, 0.002, 30.0),
    ("Q6_K", 6.0, 0.003, 28.0),
    ("Q5_K_M", 5.0, 0.03, 40.0),
    ("Q5_0", 5.5, 0.03, 35.0),
    ("Q4_K_M", 4.0, 0.06, 50.0),
]


def made(rows=ROWS):
    return [r for i, one in enumerate(rows) for r in row(*one, i)]


def asked(gib: float, **more) -> Asked:
    return Asked("vram", gib * GIB, more.pop("context", 8192), **more)


def test_needs_are_weights_cache_and_overhead():
    found = {c.name: c.need for c in recommend(made(), asked(12)).candidates}
    need = found["Q8_0"]
    assert need.weights == 8 * GIB
    assert need.kv_cache == 4 * GIB // 4  # 8,192 tokens, measured with 2,048
    assert need.overhead == pytest.approx(0.5 * GIB)
    assert need.total == pytest.approx(9.5 * GIB)
    twice = recommend(made(), asked(12, batch=2)).candidates
    assert next(c for c in twice if c.name == "Q8_0").need.kv_cache == 2 * GIB


def test_a_pool_that_an_engine_reserved_is_no_overhead():
    pooled = [replace(r, provenance={"kv_pool_bytes": 3 * GIB // 4}) for r in made()]
    found = {c.name: c.need for c in recommend(pooled, asked(12)).candidates}
    assert found["Q8_0"].overhead == 0  # 0.5 GiB beside the cache of one sequence, 0.25
    assert found["Q8_0"].kv_cache == GIB
    share = [replace(r, provenance={"kv_pool_bytes": None}) for r in made()]  # of unknown size
    assert all(c.need.overhead is None for c in recommend(share, asked(12)).candidates)


@pytest.mark.parametrize(
    ("gib", "more", "name"),
    [
        (40, {}, "Q6_K"),  # none and Q8_0 are as good within 1%, and larger
        (40, {"margin": 1e-6}, "none"),
        (40, {"margin": 0.1}, "Q4_K_M"),
        (9, {}, "Q6_K"),
        (8, {}, "Q5_K_M"),
        (7, {}, "Q4_K_M"),
        (6, {}, None),
        (40, {"min_speed": 29.0}, "Q8_0"),
        (40, {"min_speed": 45.0}, "Q4_K_M"),
        (40, {"min_speed": 60.0}, None),
        (10, {"context": 32768}, "Q4_K_M"),
    ],
)
def test_the_best_that_fits_and_of_equals_the_smallest(gib, more, name):
    found = recommend(made(), asked(gib, **more))
    assert (found.answer.name if found.answer else None) == name


def test_the_front_and_what_dominates():
    by = {c.name: c.dominated_by for c in recommend(made(), asked(12)).candidates}
    assert by == {
        "none": "Q6_K",
        "Q8_0": None,  # faster than Q6_K
        "Q6_K": None,
        "Q5_K_M": None,
        "Q5_0": "Q5_K_M",
        "Q4_K_M": None,
    }


def test_more_memory_never_recommends_a_worse_rank():
    ranks = [
        found.answer.rank
        for gib in range(5, 20)
        if (found := recommend(made(), asked(gib))).answer is not None
    ]
    assert ranks == sorted(ranks, reverse=True) and len(set(ranks)) == 3


def test_the_order_of_rows_and_records_does_not_matter():
    wanted = recommend(made(), asked(9))
    rng = random.Random(0)
    for _ in range(5):
        rows = ROWS.copy()
        rng.shuffle(rows)
        records = made(rows)
        rng.shuffle(records)
        found = recommend(records, asked(9))
        assert [(c.name, c.rank, c.dominated_by) for c in found.candidates] == [
            (c.name, c.rank, c.dominated_by) for c in wanted.candidates
        ]
        assert sentences(found) == sentences(wanted)


def kld(mean: float, by: float = 0.0) -> Metric:
    values = tuple(mean * (1 + 0.05 * s) + by for s in SIGNS)
    facts = {"better": "lower", "pairs": "window", "change": "difference", "from_baseline": True}
    value = sum(values) / len(values)
    interval = {"low": 0.9 * value, "high": 1.1 * value}
    return Metric("kld", value, "kl/x", "nats", n=len(values), values=values, **interval, **facts)


def diverged(**floors: float):
    """By name the mean divergence; the baseline's is that of rounding."""
    rows = [("none", 14.0, 1e-9), ("Q8_0", 7.0, 0.004), ("Q5_K_M", 5.0, 0.03)]
    for i, (name, gib, mean) in enumerate(rows):
        one, *_ = row(name, gib, 0.0, None, i)
        yield replace(one, metrics=(*one.metrics, completed(kld(mean))))
    for i, (kind, mean) in enumerate(floors.items(), 7):
        one, *_ = row(f"floor: {kind}", 14.0, 0.0, None, i)
        named = {**one.cell["quantization"], "floor": kind}
        cell = {**one.cell, "quantization": named}
        yield replace(one, metrics=(completed(kld(mean)),), cell=cell, key=kind)


@pytest.mark.parametrize(
    ("margin", "floors", "name"),
    [
        (0.01, {}, "Q8_0"),  # 0.004 nats are within ln(1.01)
        (0.001, {}, "none"),
        (0.001, {"rounding": 0.004}, "Q8_0"),  # what the baseline differs by from itself
        (0.05, {}, "Q5_K_M"),
    ],
)
def test_a_divergence_goes_first_and_has_its_margin_and_floor(margin, floors, name):
    found = recommend(diverged(**floors), asked(40, margin=margin))
    assert found.quality.name == "kld" and found.answer.name == name
    assert not [c for c in found.candidates if c.name.startswith("floor")]
    assert "; measured, but not looked at: PPL" in sentences(found)[-1]


def test_simulated_rows_and_floors_are_no_candidates():
    records = made() + list(row("RTN W4", 3.0, 0.001, None, 9, artifact={"simulated": True}))
    found = recommend(records, asked(40))
    assert "RTN W4" not in {c.name for c in found.candidates}
    assert "left out: RTN W4: simulated (†)" in text(found)
    with pytest.raises(UsageError, match="how good a row that can be deployed is"):
        recommend(records[-1:], asked(40))


def test_what_was_not_measured_is_said_and_counts_as_nothing():
    records = [*made()[:2], *row("Q4_0", 4.0, 0.0, None, 1)]
    blind = [replace(r, memory=None) if r.cell["task"]["name"] == "perplexity" else r for r in records]
    found = recommend(blind, asked(12))
    assert found.answer.name == "Q4_0"
    assert found.answer.need.kv_cache is None and found.answer.need.overhead is None
    run, _, missing = sentences(found)
    assert "it needs at least 5.00 of the 12.0 GiB" in run
    assert "its KV cache; overhead (no peak on a GPU); its speed on a GPU" in missing


def test_peaks_and_speeds_of_a_gpu_say_nothing_of_a_cpu():
    found = recommend(made(), Asked("ram", 40 * GIB, 8192))
    assert all(c.need.overhead is None and c.speed is None for c in found.candidates)


def test_nothing_fits_says_by_how_much_and_what_would():
    first, second, _ = sentences(recommend(made(), asked(6)))
    assert "Q4_K_M, the smallest, needs 6.50 GiB" in first and "0.500 GiB more than 6.00 GiB" in first
    assert second == "With a shorter context would fit: Q4_K_M with up to 4,096 tokens."
    _, second, _ = sentences(recommend(made(), asked(3)))
    assert "at any context" in second


def test_rows_that_cannot_be_tested_are_told_by_their_numbers():
    records = made()
    for i in (2, 4):  # one window each: no interval
        records[i] = replace(records[i], metrics=(completed(ppl([3.0 + 0.01 * i])),))
    found = recommend(records[2:6], asked(40))
    assert found.answer.name == "Q8_0" and found.ranks.untested
    assert "could not be tested" in text(found)


def test_how_much_worse_it_may_be_is_said():
    found = recommend(made(), asked(12))
    by = {c.name: c.row for c in found.candidates}
    change = found.ranks.pairs[by["none"], by["Q6_K"]]  # the first less the second
    loss = found.ranks.largest_loss(by["Q6_K"], lower_is_better=True)
    assert (1 + loss) * (1 + change.at_least) == pytest.approx(1) and 0.003 < loss < 0.01
    assert (
        f"not ruled out: that it is worse in PPL than a row of its rank, by {100 * loss:.2g}%"
        in (sentences(found)[-1])
    )


def test_three_problems_without_a_flip_leave_much_open():
    records = [
        replace(r, metrics=(completed(pass_at_1([1.0, 0.0, 1.0])),))
        for r in made()
        if r.cell["task"]["name"] == "perplexity"
    ]
    found = recommend(records, asked(40))
    assert found.answer.name == "Q4_K_M" and {c.rank for c in found.candidates} == {1}
    assert (
        "not ruled out: that it is worse in pass@1 than a row of its rank, by 63 pts"
        in (sentences(found)[-1])
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"metric": "kld"}, "no column 'kld'"),
        ({"metric": "decode_tok_s"}, "'decode_tok_s' says not how good"),
        ({"model": "other"}, "no model is called 'other'"),
        ({"baseline": "Q7"}, "no row is called 'Q7'"),
    ],
)
def test_what_cannot_be_is_one_line(more, message):
    with pytest.raises(UsageError, match=message):
        recommend(made(), asked(12), **more)


def test_two_models_need_a_choice():
    other = record("none", "perplexity", [shifted(0.0)], model="org/other", conditions=GPU)
    with pytest.raises(UsageError, match="2 models: give --model"):
        recommend([*made(), other], asked(12))
    assert recommend([*made(), other], asked(12), model="org/model").answer.name == "Q6_K"


# -- the command ------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    store = Store(tmp_path / "r")
    for one in made():
        store.append(one)
    return str(store.folder)


def run(*args: str):
    return CliRunner().invoke(cli, ["recommend", *args])


def test_the_command_prints_candidates_and_three_sentences(folder):
    done = run(folder, "--vram", "12GiB", "--context", "8192")
    assert done.exit_code == 0, done.output
    run_line, why, missing = done.stdout.splitlines()[-3:]
    assert run_line.startswith(
        "Run Q6_K: with 1 sequence of 8,192 tokens it needs 8.50 of the 12.0 GiB"
    )
    assert "Q8_0 is as good, as far as this run shows, and needs more memory" in why
    assert "none is better" not in why  # within the margin it is equal
    assert missing.startswith("Not measured: its peak with 1 sequence of 8,192 tokens")


def test_nothing_fits_ends_with_three_and_json_is_strict(folder):
    done = run(folder, "--vram", "2GiB", "--context", "8192", "--format", "json")
    assert done.exit_code == 3
    data = json.loads(done.stdout)
    assert data["answer"] is None and len(data["candidates"]) == len(ROWS)
    assert {c["fits"] for c in data["candidates"]} == {False}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--context", "1"), "give --vram or --ram"),
        (("--vram", "1GiB", "--ram", "1GiB", "--context", "1"), "give --vram or --ram"),
        (("--vram", "12", "--context", "1"), "'12' is no size"),
        (("--vram", "1GiB"), "Missing option '--context'"),
        (("--vram", "1GiB", "--context", "0"), "0 is not in the range"),
    ],
)
def test_bad_input_is_a_usage_error(folder, args, message):
    done = run(folder, *args)
    said = done.output + str(done.exception)
    assert message in said and getattr(done.exception, "exit_code", done.exit_code) == 2
