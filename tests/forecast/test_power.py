"""What a planned run would find is what the spread of earlier runs says, and is not made up."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qeval.core.errors import UsageError
from qeval.forecast.power import CHANGED, wish
from qeval.stats.power import Sides, spread_in_order, spread_of_sides

PPL = "perplexity: {dataset: 'file:text.txt', seq_len: 32}"
RNG = np.random.default_rng(0)
BASE = RNG.standard_normal(40)
NOISE = {"Q8_0": 0.01 * RNG.standard_normal(40), "Q4_0": 0.1 * RNG.standard_normal(40)}


def rows(metric, n=40):
    """Of windows: the base, and what each row adds to it."""
    nothing = np.zeros(40)
    return lambda cell: [metric(list((BASE + NOISE.get(cell.row.quantization.label, nothing))[:n]))]


def test_windows_are_told_from_the_differences_of_an_earlier_run(write, told, measured, ppl):
    spec = write(f"{{{PPL}}}")
    measured(spec, "before", rows(ppl), limit=40)
    [column] = told(spec, "before", detect=["1%", "3"]).columns
    assert (column.n, column.whole, column.unit) == (column.whole, column.n, "windows")
    assert column.n > 100 and column.said == "earlier run of this model, 40 units"
    for row, value in column.finds():
        assert value == pytest.approx(math.expm1(spread_in_order(NOISE[row]).finds(column.n)))
    (best, least), (worst, most) = column.finds()
    assert (best, worst) == ("Q8_0", "Q4_0") and most == pytest.approx(10 * least, rel=0.7)
    percent, points = (wish(text) for text in ("1%", "3"))
    assert column.needs(points) == []
    for row, n in column.needs(percent):
        spread = spread_in_order(NOISE[row])
        assert math.expm1(spread.finds(n)) <= 0.01 < math.expm1(spread.finds(n - 1)) or n == 2


def test_a_limit_counts(write, told, measured, ppl):
    spec = write(f"{{{PPL}}}")
    measured(spec, "before", rows(ppl), limit=40)
    [all_of_it], [few] = (told(spec, "before", **o).columns for o in ({}, {"limit": 12}))
    assert (few.n, few.whole) == (12, all_of_it.n)
    assert few.finds()[0][1] > 2 * all_of_it.finds()[0][1]


def test_the_same_model_goes_before_its_family_and_that_before_others(
    write, told, measured, ppl, tiny_llama
):
    from qeval.core.artifact import ModelRef
    from qeval.models.told import vocabulary_sha256

    own = vocabulary_sha256(ModelRef("m", tiny_llama, "sha256:0", "float32"))
    spec = write(f"{{{PPL}}}")
    measured(spec, "other", rows(ppl), limit=40, model="other/model")
    [column] = told(spec, "other").columns
    assert column.said == "earlier run of another model (other/model), 40 units"
    measured(spec, "kin", rows(ppl, 30), limit=30, model="small/model", tokenizer=own)
    [column] = told(spec, "other", "kin").columns
    assert column.said == "earlier run of a model with the same tokenizer (small/model), 30 units"
    measured(spec, "own", rows(ppl, 20), limit=20)
    [column] = told(spec, "other", "kin", "own").columns
    assert column.said == "earlier run of this model, 20 units"


def test_the_familys_vocabulary_is_that_of_the_record(tiny_llama):
    from qeval.core.artifact import ModelRef
    from qeval.models.tokenizer import load_tokenizer
    from qeval.models.told import vocabulary_sha256

    model = ModelRef("m", tiny_llama, "sha256:0", "float32")
    assert vocabulary_sha256(model) == load_tokenizer(model).sha256


def test_nothing_is_told_of_windows_that_nobody_measured(write, told, measured, ppl):
    spec = write(f"{{{PPL}}}", "{divergence: {dataset: 'file:text.txt', seq_len: 32, floors: []}}")
    first, kld, same_top = told(spec).columns
    assert first.finds() == kld.finds() == same_top.finds() == []
    assert first.said == "unknown: no earlier run; measure with --limit 16 first"
    assert kld.metric.unit == "nats" and "two quantized rows" in kld.said
    measured(spec, "few", lambda c: rows(ppl, 4)(c) if c.task.task == "perplexity" else None, limit=4)
    few = told(spec, "few").columns[0]
    assert few.finds() == [] and few.said.startswith("unknown: an earlier run has 4 units")


def test_other_options_are_another_task(write, told, measured, ppl):
    measured(write(f"{{{PPL}}}"), "before", rows(ppl), limit=40)
    for other in ("seq_len: 16", "seq_len: 32, spread: true", "seq_len: 32, protocol: llamacpp"):
        [column] = told(
            write(f"{{perplexity: {{dataset: 'file:text.txt', {other}}}}}"), "before"
        ).columns
        assert column.finds() == []


def test_rows_that_are_planned_go_before_others(write, told, measured, ppl):
    measured(write(f"{{{PPL}}}"), "before", rows(ppl), limit=40)
    [column] = told(write(f"{{{PPL}}}", rows=["gguf: Q8_0"]), "before").columns
    assert [row for row, _ in column.finds()] == ["Q8_0"]
    [column] = told(write(f"{{{PPL}}}", rows=["gguf: Q5_0"]), "before").columns
    assert [row for row, _ in column.finds()] == ["Q8_0", "Q4_0"]


def test_divergences_are_compared_between_rows(write, told, measured, kld):
    """Each with the next: their own size is their distance from the baseline."""
    spec = write("{divergence: {dataset: 'file:text.txt', seq_len: 32, floors: []}}")
    values = {"none": BASE * 0, "Q8_0": 0.001 + 0.0001 * RNG.standard_normal(40)}
    values["Q4_0"] = values["Q8_0"] + 0.01 + 0.001 * RNG.standard_normal(40)
    measured(spec, "before", lambda c: [kld(list(values[c.row.quantization.label]))], limit=40)
    column = told(spec, "before").columns[0]
    [(pair, value)] = column.finds()
    assert pair == "Q8_0 and Q4_0"
    assert value == pytest.approx(spread_in_order(values["Q4_0"] - values["Q8_0"]).finds(column.n))


def test_shares_of_problems_have_an_assumption_or_an_earlier_run(write, told, measured, passed):
    spec = write("{humaneval: {mode: base}}")
    [column] = told(spec, detect=["1"]).columns
    assert column.n == column.whole == 164
    assert column.finds() == [("any row", Sides(CHANGED).finds(164))]
    assert column.said == "assumed, no earlier run: 10% of the problems change sides"
    right = [float(i % 2) for i in range(164)]
    flipped = [1 - x if i < 8 else x for i, x in enumerate(right)]
    label = lambda c: c.row.quantization.label  # noqa: E731
    measured(spec, "before", lambda c: [passed(right if label(c) == "none" else flipped)])
    [column] = told(spec, "before").columns
    assert column.finds()[0][1] == spread_of_sides(8, 164).finds(164)


def test_drawn_samples_are_at_their_worst_where_nothing_is_known(write, told):
    """The variance of the difference of two shares of n draws, at one half each, is 1 / 2n."""
    few, many, ten = (
        told(write(f"{{humaneval: {{mode: base, temperature: 0.8, n_samples: {n}, k: {k}}}}}")).columns[
            0
        ]
        for n, k in ((20, "[1]"), (200, "[1]"), (20, "[10]"))
    )
    assert few.finds()[0][1] == pytest.approx(2.81 * math.sqrt(1 / 40 / 164), rel=0.01)
    assert few.finds()[0][1] == pytest.approx(math.sqrt(10) * many.finds()[0][1], rel=1e-6)
    assert ten.finds()[0][1] == pytest.approx(math.sqrt(10) * few.finds()[0][1], rel=1e-6)


@pytest.mark.parametrize(("n", "k"), [(20, 1), (20, 10), (5, 5)])
def test_no_problem_has_more_variance_than_its_draws_at_their_worst(n, k):
    from qeval.stats.intervals import pass_at_k

    rng = np.random.default_rng(1)
    for p in (0.05, 0.2, 0.5, 0.9):
        drawn = [pass_at_k(n, int(c), k) for c in rng.binomial(n, p, 4000)]
        assert np.var(drawn) <= 1.05 * k / (4 * n)


@pytest.mark.parametrize(
    ("text", "change", "value"),
    [
        ("1", "points", 0.01),
        ("0.5 pts", "points", 0.005),
        ("0.5%", "relative", 0.005),
        ("0.001nats", "difference", 0.001),
        ("1e-4 nats", "difference", 1e-4),
    ],
)
def test_a_wished_difference(text, change, value):
    found = wish(text)
    assert found.change == change and found.value == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "0", "-1", "x", "1%%", "nan", "inf%", "1 2"])
def test_what_is_no_difference_is_one_line(text):
    with pytest.raises(UsageError, match=r"--detect .*: give a difference over zero: 1 \(points"):
        wish(text)
