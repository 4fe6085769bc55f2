"""The inner loop of all solvers: its definition, in torch and as the CUDA kernel."""

import importlib

import pytest
import torch

from qeval.quant.laboratory.solvers.columns import has_triton, round_columns
from qeval.quant.laboratory.solvers.levels import Levels

SHAPES = [(128, 40), (16, 33), (5, 64), (1, 1)]  # columns, outputs


def case(n, out, *, one_grid, limited=False, seed=0):
    g = torch.Generator().manual_seed(seed)
    values, reference = torch.randn(n, out, generator=g), torch.randn(n, out, generator=g)
    coupling = 0.1 * torch.randn(n, n, generator=g)
    k = 1 if one_grid else n
    scale = 0.1 + 0.2 * torch.rand(k, out, generator=g)
    zero_point = torch.randint(0, 8, (k, out), generator=g).float()
    limit = 0.01 * torch.rand(n, generator=g) if limited else None
    return values, coupling, Levels(scale, zero_point, 0, 15, limit), reference


@pytest.mark.parametrize(("n", "out"), SHAPES)
@pytest.mark.parametrize("referred", [True, False])
@pytest.mark.parametrize("rounded", [True, False])
def test_every_column_gets_what_those_before_it_passed_on(n, out, referred, rounded):
    values, coupling, levels, reference = case(n, out, one_grid=False, limited=True)
    then = values.clone()
    new = round_columns(
        then, coupling, levels if rounded else None, reference.clone() if referred else None
    )
    passed = (reference if referred else then) - new
    upper = coupling.triu(1)
    torch.testing.assert_close(then, values + upper.T @ passed, rtol=1e-4, atol=1e-5)
    for i in range(n):
        assert torch.equal(new[i], levels.round(i, then[i]) if rounded else then[i])


def test_what_exceeds_the_limit_stays_as_float16():
    values = torch.tensor([[0.3, 0.26, 1.1234567]])
    levels = Levels(torch.full((1, 3), 0.5), torch.zeros(1, 3), 0, 15, torch.tensor([0.05]))
    new = round_columns(values, torch.zeros(1, 1), levels)
    assert new.tolist() == [[0.5, torch.tensor(0.26).half().item(), 1.0]]


@pytest.fixture
def kernel(monkeypatch):
    """The kernel's module and its device: on the CPU in Triton's interpreter."""
    if not has_triton():
        pytest.skip("triton is not installed (it comes with torch for CUDA)")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    return importlib.import_module("qeval.quant.laboratory.solvers.columns_triton"), device


@pytest.mark.parametrize(("n", "out"), SHAPES)
@pytest.mark.parametrize("one_grid", [True, False])
@pytest.mark.parametrize("referred", [True, False])
@pytest.mark.parametrize("rounded", [True, False])
def test_the_kernel_does_what_the_loop_does(kernel, n, out, one_grid, referred, rounded):
    module, device = kernel
    values, coupling, levels, reference = case(n, out, one_grid=one_grid)
    levels = levels if rounded else None
    given = reference if referred else None
    then, now = values.clone(), values.to(device)
    expected = round_columns(then, coupling, levels, given)
    there = None
    if levels is not None:
        there = Levels(levels.scale.to(device), levels.zero_point.to(device), 0, 15)
    turned = coupling.to(device).T.contiguous().T  # as CUDA's solvers leave a matrix
    new = module.round_on_cuda(now, turned, there, given.to(device) if referred else None)
    torch.testing.assert_close(now.cpu(), then, rtol=1e-4, atol=1e-5)
    if levels is None:
        torch.testing.assert_close(new.cpu(), expected, rtol=1e-4, atol=1e-5)
    else:  # exactly on the grid; a tie may go the other way, where torch fuses operations
        assert (new.cpu() != expected).float().mean() < 0.01
        for i in range(n):
            assert torch.equal(new[i].cpu(), levels.round(i, now[i].cpu()))


def test_the_kernel_keeps_what_exceeds_the_limit(kernel):
    module, device = kernel
    values, coupling, levels, _ = case(64, 50, one_grid=True, limited=True)
    now = values.to(device)
    scale, zero, limit = (x.to(device) for x in (levels.scale, levels.zero_point, levels.limit))
    new = module.round_on_cuda(now, coupling.to(device), Levels(scale, zero, 0, 15, limit), None).cpu()
    same = torch.stack([new[i] == levels.round(i, now[i].cpu()) for i in range(64)])
    assert same.float().mean() > 0.999  # at the limit itself either is right
    kept = new == now.cpu().half().float()
    assert 0.1 < kept.float().mean() < 0.9
