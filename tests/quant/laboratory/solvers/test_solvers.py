"""Laws of the solvers (METHODS: "Laws"), on synthetic layers: no tuning can fake them."""

import itertools
from dataclasses import replace
from functools import partial

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from families import one_thread
from hypothesis import given, settings

from qeval.core.errors import BuildError
from qeval.formats import affine
from qeval.quant.laboratory.solvers import base
from qeval.quant.laboratory.solvers.base import GridRules, loss, off_grid
from qeval.quant.laboratory.solvers.feedback import block_bounds, factorize, feedback
from qeval.quant.laboratory.solvers.gptq import by_diagonal, gptq
from qeval.quant.laboratory.solvers.outliers import Outliers, largest_eigenvalue, quantease_outliers
from qeval.quant.laboratory.solvers.quantease import Descending, gptq_quantease, quantease
from qeval.quant.laboratory.solvers.rounding import FittedGroups
from qeval.quant.laboratory.solvers.rtn import rtn
from qeval.quant.laboratory.solvers.spqr import OutlierGroups, SecondLevel, leave_one_out, spqr

_one_thread = pytest.fixture(autouse=True)(one_thread)


ONE_PERCENT = Outliers(0.01)
SHORT = Descending(sweeps=6)  # the second does not round
SOLVERS = {
    "rtn": rtn,
    "gptq": gptq,
    "gptq-act-order": partial(gptq, act_order=True),
    "gptq-static": partial(gptq, act_order=True, static_groups=True),
    "quantease": partial(quantease, how=SHORT),
    "gptq-quantease": partial(gptq_quantease, how=SHORT),
    "quantease-outliers": partial(quantease_outliers, outliers=ONE_PERCENT, how=SHORT),
    "quantease-columns": partial(
        quantease_outliers, outliers=Outliers(0.02, structured=True), how=SHORT, percdamp=0.01
    ),
    "spqr": spqr,
    "spqr-act-order": partial(spqr, act_order=True, second_level=None),
}


def layer(seed=0, rows=64, columns=256, tokens=1024, heavy=0.0):
    """W [rows, columns] and H of correlated inputs of uneven size; ``heavy``: a share of the weights is
    five times as large."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.eye(columns) + 0.1 * torch.randn(columns, columns, generator=g)
    x = mix @ torch.randn(columns, tokens, generator=g)
    x *= torch.randn(columns, 1, generator=g).exp()
    w = torch.randn(rows, columns, generator=g)
    w *= 1 + 4 * (torch.rand(rows, columns, generator=g) < heavy)
    return w, x @ x.T / tokens


def relative(solution):
    return solution.facts.relative_loss


# --- The laws


@settings(max_examples=12, deadline=None)
@given(
    st.integers(2, 8),
    st.sampled_from([-1, 8, 4]),
    st.booleans(),
    st.integers(0, 999),
    st.floats(1e-4, 1e4),
)
def test_independent_inputs_leave_nothing_to_gain(bits, group, symmetric, seed, size):
    """H proportional to I: GPTQ = QuantEase = SpQR without its additions = RTN, exactly."""
    w = torch.randn(5, 24, generator=torch.Generator().manual_seed(seed))
    h, rules = size * torch.eye(24), GridRules(bits, group, symmetric)
    expected = affine.fake_quantize(w, bits, group, symmetric)
    for solve in (
        rtn,
        gptq,
        partial(gptq, act_order=True),
        partial(gptq, static_groups=True),
        partial(quantease, how=SHORT),
        partial(quantease, how=Descending(relax=False)),
        partial(gptq_quantease, how=SHORT),
        partial(spqr, outlier_threshold=None, second_level=None),
    ):
        assert torch.equal(solve(w, h, rules).weight, expected)


@settings(max_examples=8, deadline=None)
@given(st.integers(2, 4), st.sampled_from([-1, 5]), st.integers(0, 999))
def test_without_relaxation_the_loss_never_rises(bits, group, seed):
    w, h = layer(seed, rows=4, columns=20, tokens=40)
    rules, exact = GridRules(bits, group), h.double()
    for start in (rtn(w, h, rules), gptq(w, h, rules, act_order=True)):
        losses = [loss(w.double(), start.weight.double(), exact)]
        for sweeps in range(1, 6):
            done = quantease(w, h, rules, how=Descending(sweeps, relax=False), start=start)
            losses.append(loss(w.double(), done.weight.double(), exact))
        for before, after in itertools.pairwise(losses):
            assert after <= before * (1 + 1e-5)


TABLE = {
    "RTN": rtn,
    "GPTQ": gptq,
    "GPTQ act-order": partial(gptq, act_order=True),
    "QuantEase, no relaxation": partial(quantease, how=Descending(relax=False)),
    "QuantEase": quantease,
    "GPTQ+QuantEase": gptq_quantease,
    "GPTQ+QuantEase +1% outliers": partial(quantease_outliers, outliers=ONE_PERCENT, percdamp=0.01),
    "SpQR": partial(spqr, second_level=None, percdamp=0.01),
}


@pytest.fixture(scope="module", params=itertools.product((3, 4), (0, 1)), ids=str)
def losses(request):
    """Every solver's relative loss on one seeded layer, the same H for all; printed (pytest -s)."""
    bits, seed = request.param
    w, h = layer(seed, rows=32, columns=128)
    found = {name: relative(solve(w, h, GridRules(bits))) for name, solve in TABLE.items()}
    print(f"\n{bits} bits, seed {seed}", *(f"{v:.5f}  {k}" for k, v in found.items()), sep="\n")
    return found


def test_who_beats_whom(losses):
    ranking = ["RTN", "GPTQ", "GPTQ act-order", "GPTQ+QuantEase", "GPTQ+QuantEase +1% outliers"]
    ranked = [losses[name] for name in ranking]
    assert ranked == sorted(ranked, reverse=True)
    assert ranked[1] < 0.8 * ranked[0] and ranked[3] < 0.9 * ranked[2] and ranked[4] < 0.9 * ranked[3]
    assert losses["GPTQ+QuantEase"] < losses["QuantEase"] < losses["GPTQ"]
    assert losses["QuantEase"] < losses["QuantEase, no relaxation"]
    assert losses["SpQR"] < losses["GPTQ"]


@pytest.mark.parametrize("group", [-1, 32])
@pytest.mark.parametrize("seed", range(3))
def test_quantease_is_never_worse_than_where_it_begins(group, seed):
    w, h = layer(seed, rows=8, columns=96)
    rules = GridRules(3, group)
    for start in (rtn(w, h, rules), gptq(w, h, rules), gptq(w, h, rules, act_order=True)):
        for how in (Descending(2), Descending(9), Descending(9, relax=False)):
            after = quantease(w, h, rules, how=how, start=start)
            assert after.facts.loss <= start.facts.loss
            assert torch.equal(after.group_of, start.group_of)


@pytest.mark.parametrize("percdamp", [None, 0.01])
@pytest.mark.parametrize("heavy", [0.0, 0.01])
def test_outliers_lower_the_loss_at_equal_bits(percdamp, heavy):
    w, h = layer(rows=32, columns=128, heavy=heavy)
    rules, how = GridRules(3), Descending(9)
    dense = (
        quantease(w, h, rules, how=how) if percdamp is None else gptq_quantease(w, h, rules, how=how)
    )
    sparse = quantease_outliers(w, h, rules, outliers=ONE_PERCENT, how=how, percdamp=percdamp)
    assert relative(sparse) < (0.5 if heavy else 0.85) * relative(dense)
    assert sparse.facts.outlier_share == round(0.01 * w.numel()) / w.numel()
    assert dense.facts.outlier_share == 0


def test_outlier_columns_lower_the_loss_where_columns_are_large():
    w, h = layer(rows=32, columns=128)
    w[:, [3, 77, 120]] *= 6
    rules, how, kept = GridRules(3), Descending(9), Outliers(0.0234, structured=True)
    columns = quantease_outliers(w, h, rules, outliers=kept, how=how)
    assert relative(columns) < 0.5 * relative(quantease(w, h, rules, how=how))
    assert columns.outliers.any(0).nonzero().flatten().tolist() == [3, 77, 120]
    assert columns.outliers.all(0).sum() == 3


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 999), st.booleans())
def test_outliers_without_relaxation_the_loss_never_rises(seed, structured):
    w, h = layer(seed, rows=6, columns=20, tokens=40, heavy=0.05)
    solve = partial(quantease_outliers, w, h, GridRules(3), outliers=Outliers(0.1, structured))
    losses = [solve(how=Descending(n, relax=False)).facts.loss for n in range(1, 5)]
    for before, after in itertools.pairwise(losses):
        assert after <= before * (1 + 1e-3)  # outliers are rounded to float16 at the end


@pytest.mark.parametrize("heavy", [0.0, 0.01])
def test_spqr_is_below_gptq_at_equal_bits_and_group(heavy):
    w, h = layer(rows=32, columns=128, heavy=heavy)
    rules = GridRules(3, 16)
    assert relative(spqr(w, h, rules)) < 0.75 * relative(gptq(w, h, rules))  # its damping is 100 times
    for bits, percdamp in itertools.product((3, 4), (0.01, 1.0)):
        rules = GridRules(bits, 16)
        dense = gptq(w, h, rules, percdamp=percdamp)
        sparse = spqr(w, h, rules, percdamp=percdamp, second_level=None)
        assert relative(sparse) < relative(dense)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("threshold", [None, 1e30])
def test_spqr_without_outliers_and_second_level_is_group_gptq(threshold, act_order):
    w, h = layer(rows=16, columns=64)
    how = {"percdamp": 0.1, "act_order": act_order}
    ours = spqr(w, h, GridRules(3, 16), outlier_threshold=threshold, second_level=None, **how)
    theirs = gptq(w, h, GridRules(3, 16), **how)
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.grid.scale, theirs.grid.scale)
    assert torch.equal(ours.group_of, theirs.group_of)
    assert ours.outliers is None or not ours.outliers.any()


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("rules", [GridRules(2, 16), GridRules(3), GridRules(4, 16, symmetric=True)])
def test_every_result_lies_on_its_grid(name, rules):
    w, h = layer(rows=20, columns=64, heavy=0.02)
    given = w.clone(), h.clone()
    solution = SOLVERS[name](w, h, rules)
    assert torch.equal(w, given[0]) and torch.equal(h, given[1])  # nothing passed in is changed
    assert off_grid(solution) == 0
    kept = torch.zeros_like(w, dtype=torch.bool) if solution.outliers is None else solution.outliers
    for row, out in zip(solution.weight, kept, strict=True):
        for group in solution.group_of.unique():
            inside = row[(solution.group_of == group) & ~out]
            assert len(inside.unique()) <= 2**rules.num_bits
    if kept.any():
        assert torch.equal(solution.weight[kept].half().float(), solution.weight[kept])
    assert solution.facts.loss == pytest.approx(loss(w, solution.weight, h), rel=1e-6)
    assert relative(solution) == pytest.approx(solution.facts.loss / loss(w, 0 * w, h), rel=1e-6)


def test_a_weight_off_its_grid_is_found():
    w, h = layer(rows=4, columns=32)
    solution = gptq(w, h, GridRules(3, 8))
    moved = solution.weight.clone()
    moved[2, 5] += 0.01
    assert off_grid(replace(solution, weight=moved)) == 1


@pytest.mark.parametrize("name", SOLVERS)
def test_the_layout_in_memory_does_not_matter(name):
    """Conv1D keeps W^T: nothing may be changed in place, nor come out otherwise."""
    w, h = layer(rows=8, columns=64)
    turned = w.T.contiguous().T
    a, b = (SOLVERS[name](x, h, GridRules(3, 16)) for x in (w, turned))
    torch.testing.assert_close(a.weight, b.weight, rtol=0, atol=0)
    assert torch.equal(turned, w)


def test_a_given_start_is_left_alone():
    w, h = layer(rows=8, columns=64)
    start = rtn(w.T.contiguous().T, h, GridRules(3))
    before = start.weight.clone()
    quantease(w, h, GridRules(3), start=start, how=SHORT)
    assert torch.equal(start.weight, before)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_scale_of_the_hessian_does_not_matter(name):
    w, h = layer(rows=8, columns=64)
    a, b = (SOLVERS[name](w, size * h, GridRules(3, 16)) for size in (1, 4096))
    assert torch.equal(a.weight, b.weight)  # a power of two: not even rounding differs


# --- Against brute force


@pytest.mark.parametrize("columns", [2, 3])
def test_gptq_is_the_closed_form_on_a_few_columns(columns):
    """Each column rounded, the rest at its exact optimum for the errors so far (in float64)."""
    w, h = layer(3, rows=40, columns=columns, tokens=8)
    rules, percdamp = GridRules(3), 0.05
    grid = affine.fit_grid(w, 3, -1, False)
    damped = (h + percdamp * h.diagonal().mean() * torch.eye(columns)).double()
    now, rounded = w.double(), torch.zeros(w.shape, dtype=torch.float64)
    for i in range(columns):
        level = (now[:, i] / grid.scale[:, 0] + grid.zero_point[:, 0]).round().clamp(0, 7)
        rounded[:, i] = (level - grid.zero_point[:, 0]) * grid.scale[:, 0]
        error, rest = now[:, i] - rounded[:, i], slice(i + 1, columns)
        # min over d of (error, -d) H (error, -d)^T for the columns behind: H_rest d = H_rest,i error
        if i + 1 < columns:
            now[:, rest] += torch.linalg.solve(damped[rest, rest], damped[rest, i]) * error[:, None]
    got = gptq(w, h, rules, percdamp=percdamp).weight
    torch.testing.assert_close(got.double(), rounded, rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_quantease_ends_where_no_single_weight_can_be_better(seed):
    w, h = layer(seed, rows=3, columns=6, tokens=12)
    solution = quantease(w, h, GridRules(2), how=Descending(60, relax=False))
    grid, found = solution.grid, solution.facts.loss
    for row, column, level in itertools.product(range(3), range(6), range(4)):
        other = solution.weight.clone()
        other[row, column] = (level - grid.zero_point[row, 0]) * grid.scale[row, 0]
        assert loss(w, other, h) >= found * (1 - 1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_no_solver_beats_the_exhaustive_optimum_and_quantease_is_near_it(seed):
    w, h = layer(seed, rows=1, columns=5, tokens=12)
    grid = affine.fit_grid(w, 2, -1, False)
    levels = torch.tensor(list(itertools.product(range(4), repeat=5))).float()
    every = (levels - grid.zero_point) * grid.scale
    error = w - every
    best = ((error @ h) * error).sum(1).min().item()
    for solve in (rtn, gptq, quantease, gptq_quantease):
        assert solve(w, h, GridRules(2)).facts.loss >= best * (1 - 1e-5)
    assert gptq_quantease(w, h, GridRules(2)).facts.loss <= 2 * best + 1e-6


@pytest.mark.parametrize("turned", [False, True])
def test_the_factor(turned):
    _, h = layer(columns=48)
    order = by_diagonal(h) if turned else torch.arange(48)
    factor, damping = factorize(h, 0.01, order if turned else None)
    damped = (h + 0.01 * h.diagonal().mean() * torch.eye(48))[order[:, None], order].double()
    assert damping == 0.01
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor.double() @ factor.double().T, damped, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rules", [GridRules(4), GridRules(3, 16), GridRules(3, 192)])
def test_feedback_is_the_papers_algorithm(rules):
    """GPTQ's algorithm 1 as it is written, with the inverse's factor, one column at a time. In float64:
    a rounding that goes another way would send all columns behind it elsewhere."""
    w, h = (x.double() for x in layer(rows=8, columns=192))
    damped = h + 0.01 * h.diagonal().mean() * torch.eye(192)
    inverse = torch.linalg.cholesky(torch.linalg.inv(damped)).T
    work, width = w.clone(), rules.width(192)
    for i in range(192):
        if i % width == 0:
            grid = affine.fit_grid(work[:, i : i + width], rules.num_bits, -1, False)
        levels = (work[:, i] / grid.scale[:, 0] + grid.zero_point[:, 0]).round()
        rounded = (levels.clamp(grid.low, grid.high) - grid.zero_point[:, 0]) * grid.scale[:, 0]
        error = (work[:, i] - rounded) / inverse[i, i]
        work[:, i + 1 :] -= error[:, None] * inverse[i, i + 1 :]
        work[:, i] = rounded
    factor, _ = factorize(h, 0.01)
    torch.testing.assert_close(feedback(w, factor, FittedGroups(rules), width), work)


def test_blocks_cut_every_column_once_and_no_group_inside_a_block_of_many():
    for n, group, size in [
        (256, 16, 128),
        (96, 48, 128),
        (384, 192, 128),
        (300, 300, 128),
        (64, 64, 128),
    ]:
        bounds = list(block_bounds(n, group, size))
        assert [i for a, b in bounds for i in range(a, b)] == list(range(n))
        assert all(b - a <= size for a, b in bounds)
        starts = set(range(0, n, group))
        for a, b in bounds:  # a group that begins inside a block ends in it
            assert all(s == a or s + group <= b for s in starts if a <= s < b)


@pytest.mark.parametrize("group", [-1, 16, 192])
def test_the_block_size_does_not_matter(group, monkeypatch):
    w, h = layer(rows=8, columns=384)
    rules = GridRules(4, group)
    results = []
    for size in (128, 32):
        for module in ("feedback", "quantease"):
            monkeypatch.setattr(f"qeval.quant.laboratory.solvers.{module}.BLOCK_SIZE", size)
        results.append((gptq(w, h, rules), quantease(w, h, rules, how=SHORT)))
    for a, b in zip(*results, strict=True):
        assert relative(a) == pytest.approx(relative(b), rel=0.02)


@pytest.mark.parametrize("second", [None, SecondLevel()])
def test_leave_one_out_is_what_it_says(second):
    w, h = layer(rows=3, columns=8)
    diagonal = factorize(h, 1.0)[0].diagonal().reciprocal()

    def total(row, columns):
        low, high = row[columns].min().clamp(max=0), row[columns].max().clamp(min=0)
        scale = (high - low) / 7
        zero_point = -low / scale if second else (-low / scale).round()
        levels = (row[columns] / scale + zero_point).round().clamp(0, 7)
        return (((levels - zero_point) * scale - row[columns]) / diagonal[columns]).square().sum()

    everything = list(range(8))
    fit = OutlierGroups(GridRules(3, 8), diagonal, 1.0, second).fit
    for row, gains in zip(w, leave_one_out(w, diagonal, fit), strict=True):
        for k, gain in enumerate(gains):
            others = [i for i in everything if i != k]
            assert gain == pytest.approx(float(total(row, everything) - total(row, others)), abs=2e-3)


@pytest.mark.parametrize(
    ("seed", "act_order", "their_loss", "their_outliers"),
    [
        (0, False, 0.00664, 0.0145),
        (1, False, 0.00830, 0.0170),
        (2, False, 0.00633, 0.0175),
        (0, True, 0.00632, 0.0128),
        (1, True, 0.00746, 0.0146),
        (2, True, 0.00562, 0.0150),
    ],
)
def test_spqr_does_what_its_authors_program_does(seed, act_order, their_loss, their_outliers):
    """Goldens: Vahe1994/SpQR 543d10e56f on 2026-11-28 by ``scripts/bench_quantizers.py --spqr CLONE
    --only SpQR --rows 128 --bits 3 --seed SEED``. Rounding alone (float16 ranges of the second level)
    moves a loss by up to 1.5% and a few outliers of a hundred."""
    solution = spqr(*layer(seed, rows=128), GridRules(3, 16), act_order=act_order)
    assert relative(solution) == pytest.approx(their_loss, rel=0.02)
    assert solution.facts.outlier_share == pytest.approx(their_outliers, rel=0.05)


# --- What goes wrong


@pytest.mark.parametrize("name", SOLVERS)
def test_dead_inputs(name):
    w, h = layer(rows=8, columns=64)
    dead = [0, 17, 63]
    h[dead] = 0
    h[:, dead] = 0
    solution = SOLVERS[name](w, h, GridRules(4, 16))
    assert torch.isfinite(solution.weight).all()
    assert off_grid(solution) == 0
    assert solution.facts.dead_columns == 3
    if name.startswith("gptq") or name == "spqr-act-order":  # (0 is not on SpQR's second level)
        assert not solution.weight[:, dead].any()


def test_an_input_that_is_all_zero():
    w, h = layer(rows=4, columns=16)
    for solve in SOLVERS.values():
        solution = solve(w, 0 * h, GridRules(4, 16))
        assert torch.isfinite(solution.weight).all()
        assert (solution.facts.loss, relative(solution)) == (0, 0)


def test_a_cholesky_that_fails_raises_the_damping_and_says_so():
    w, h = layer(rows=8, columns=64)
    broken = (
        h
        - 1e-2 * h.diagonal().mean() * torch.eye(64)
        - 0.9 * torch.linalg.eigvalsh(h)[0] * torch.eye(64)
    )
    for solve in (gptq, gptq_quantease, partial(spqr, second_level=None)):
        facts = solve(w, broken, GridRules(4, 16), percdamp=1e-5).facts
        assert facts.damping_asked == 1e-5
        assert facts.damping > 1e-3
    kept = quantease_outliers(w, broken, GridRules(4), outliers=ONE_PERCENT, percdamp=1e-5, how=SHORT)
    assert kept.facts.damping > kept.facts.damping_asked
    assert gptq(w, h, GridRules(4)).facts.damping == 0.01
    assert quantease(w, h, GridRules(4), how=SHORT).facts.damping is None


def test_a_hessian_without_hope_is_an_error():
    w, h = layer(rows=4, columns=16)
    with pytest.raises(BuildError, match="no Cholesky factor at any damping"):
        gptq(w, h - 100 * h.diagonal().mean() * torch.eye(16), GridRules(4))
    h[3, 3] = float("nan")
    with pytest.raises(BuildError, match="not finite"):
        gptq(w, h, GridRules(4))


def test_a_group_that_does_not_divide():
    w, h = layer(rows=4, columns=20)
    for solve in SOLVERS.values():
        with pytest.raises(BuildError, match="group_size 16 does not divide 20 inputs"):
            solve(w, h, GridRules(4, 16))


# --- Sizes


def test_sizes_of_outliers_are_those_of_the_arrays():
    w, h = layer(rows=24, columns=64, heavy=0.03)
    solution = quantease_outliers(w, h, GridRules(3), outliers=Outliers(0.05), how=SHORT)
    rows, columns = solution.outliers.nonzero(as_tuple=True)
    pointers = np.searchsorted(rows.numpy(), np.arange(25)).astype(np.uint32)
    values = solution.weight[rows, columns].half().numpy()
    sparse = values.nbytes + columns.numpy().astype(np.uint16).nbytes + pointers.nbytes
    assert len(values) == round(0.05 * w.numel())
    assert solution.stored_bytes == affine.stored_bytes((24, 64), 3, -1, False) + sparse
    rebuilt = base.snap_to(solution.weight, solution.grid, solution.group_of)
    for row in range(24):
        span = slice(pointers[row], pointers[row + 1])
        rebuilt[row, columns[span]] = torch.tensor(values[span]).float()
    assert torch.equal(rebuilt, solution.weight)  # nothing else is needed to have the layer back


def test_sizes_of_columns_and_of_groups_out_of_order():
    w, h = layer(rows=24, columns=64)
    dense = affine.stored_bytes((24, 64), 3, 16, False)
    columns = quantease_outliers(
        w, h, GridRules(3, 16), outliers=Outliers(0.05, structured=True), how=SHORT
    )
    assert columns.stored_bytes == dense + 3 * (24 * 2 + 4)
    assert gptq(w, h, GridRules(3, 16)).stored_bytes == dense
    assert gptq(w, h, GridRules(3, 16), act_order=True, static_groups=True).stored_bytes == dense
    assert gptq(w, h, GridRules(3, 16), act_order=True).stored_bytes == dense + 64 * 4  # g_idx
    assert gptq(w, h, GridRules(3), act_order=True).stored_bytes == affine.stored_bytes(
        (24, 64), 3, -1, False
    )


def test_sizes_of_the_second_level():
    w, h = layer(rows=40, columns=64)  # three groups of rows, the last one of 8
    second = SecondLevel(3, 16)
    solution = spqr(w, h, GridRules(3, 16), outlier_threshold=None, second_level=second)
    levels = 40 * 64 * 3 // 8
    statistics = (
        4 * 2 * (40 * 3 // 8 + 3 * 2 * 2)
    )  # groups x (scales, zeros) x (levels, two float16 a range)
    assert solution.stored_bytes == levels + statistics
    for column in solution.grid.scale.T:
        for group in column.split(16):
            assert len(group.unique()) <= 8
    assert (solution.grid.scale > 0).all()
    paper = spqr(*layer(), GridRules(3, 16), outlier_threshold=None)
    assert 8 * paper.stored_bytes / (64 * 256) == 3 + 2 * (3 / 16 + 32 / 256)


def test_the_largest_eigenvalue_is_not_underestimated():
    for seed in range(5):
        _, h = layer(seed, columns=32)
        true = torch.linalg.eigvalsh(h)[-1].item()
        assert true <= largest_eigenvalue(h) < 1.02 * true
