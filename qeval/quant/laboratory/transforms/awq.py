"""AWQ's scales (arXiv 2306.00978, section 3.2), searched block by block.

    s = m^r / sqrt(max(m^r) min(m^r)),  m = mean |x| of each input,  r = 0, 1/20, .. 19/20
and the r whose Q(W s)/s changes the output of the inspected module least (mean squared error). r = 0 is
round to nearest, so a scale is never worse than none. The module is the smallest one that holds the
linears that read the scaled operation: attention for q, k, v; the MLP for gate and up; the block where
attention and MLP read one norm; the linear itself otherwise.

- A linear's own error comes from its H (tr(E H E^T), E = W - Q(W s)/s): exact, of all calibration
  tokens. Other modules run on the first windows of the calibration, SAMPLE_TOKENS tokens or one window
  if that is longer: attention needs whole windows.
- All searches of a block see it float, with inputs that the quantized blocks before it hand on. Then
  all scales are folded (scaling.py), and every linear except queries and keys is rounded on clipped
  ranges (solvers/clipping.py), as in the authors' program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qeval.core.errors import BuildError
from qeval.formats.affine import fake_quantize
from qeval.models.architectures import Block, Feed
from qeval.quant.laboratory.driver import BlockRun, Treatment
from qeval.quant.laboratory.solvers.base import GridRules, loss
from qeval.quant.laboratory.solvers.clipping import clipped_rtn
from qeval.quant.laboratory.solvers.rtn import rtn
from qeval.quant.laboratory.transforms.scaling import fold

RATIOS = tuple(i / 20 for i in range(20))
SAMPLE_TOKENS = 2048  # that an inspected module runs on for each ratio


def awq_scale(magnitude: Tensor, ratio: float) -> Tensor:
    """s [channels] of m = mean |x| [channels], both float32. m^r is 1e-4 at least, as the authors'."""
    scale = magnitude.pow(ratio).clamp(min=1e-4)
    return scale / (scale.max() * scale.min()).sqrt()


def search(magnitude: Tensor, error_of: Callable[[Tensor], float]) -> tuple[float, Tensor]:
    """The ratio, and its scale [channels], for which ``error_of(scale)`` is least; of equal ones the
    smallest.

    Raises:
        BuildError: no ratio gives a finite error.
    """
    best, found = float("inf"), None
    for ratio in RATIOS:
        scale = awq_scale(magnitude, ratio)
        error = error_of(scale)
        if error < best:
            best, found = error, (ratio, scale)
    if found is None:
        raise BuildError("the outputs on the calibration text hold NaN or infinity")
    return found


@dataclass(frozen=True)
class AwqScales:
    """The driver's ``prepare``: searches and folds the scales of one block; clips all but q and k."""

    rules: GridRules

    def __call__(self, block: Block, run: BlockRun) -> dict[str, Treatment]:
        told = {name: Treatment(lacking=f"no scale: {why}") for name, why in block.unfed.items()}
        for feed, (ratio, scale) in self._searched(block, run):
            fold(feed, scale)
            note = f"scale mean|x|^{ratio:g}"
            told.update({linear.name: Treatment(note=note) for linear in feed.readers})
        clipped = partial(clipped_rtn, rules=self.rules)
        plain = partial(rtn, rules=self.rules)
        return {
            name: replace(how, solve=plain if name in block.queries_and_keys else clipped)
            for name, how in told.items()
        }

    def _searched(self, block: Block, run: BlockRun) -> list[tuple[Feed, tuple[float, Tensor]]]:
        """Every feed with its ratio and scale; nothing is folded yet."""
        if not block.feeds:
            return []
        watches = [_Watch(feed, inspected(block, feed)) for feed in block.feeds]
        with ExitStack() as hooks:
            for handle in (h for watch in watches for h in watch.hooks()):
                hooks.callback(handle.remove)
            measured = run.measure([feed.readers for feed in block.feeds])
        return [
            (watch.feed, watch.search(self.rules, inputs.hessian))
            for watch, inputs in zip(watches, measured, strict=True)
        ]


def inspected(block: Block, feed: Feed) -> nn.Module:
    """The smallest module of the block that holds every linear that ``feed`` feeds."""
    wanted = {linear.module for linear in feed.readers}
    holding = [m for m in block.module.modules() if wanted <= set(m.modules())]
    return min(holding, key=lambda m: sum(1 for _ in m.modules()))


class _Watch:
    """Sees what the search of one feed's scale needs while the block runs on the calibration."""

    def __init__(self, feed: Feed, module: nn.Module) -> None:
        self.feed, self._module = feed, module
        self._sum: Tensor | float = 0.0  # of |x|, [channels]
        self._n_tokens = 0
        self._calls: list[tuple[tuple[Tensor, ...], dict[str, Tensor]]] = []  # of the inspected module
        self._n_kept = 0  # their tokens

    def hooks(self) -> Iterator[RemovableHandle]:
        yield self.feed.readers[0].module.register_forward_pre_hook(self._add)
        if len(self.feed.readers) > 1:
            yield self._module.register_forward_pre_hook(self._keep, with_kwargs=True)

    def _add(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].flatten(0, -2)
        self._sum += x.float().abs().sum(dim=0)
        self._n_tokens += len(x)

    def _keep(self, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        if self._n_kept < SAMPLE_TOKENS:
            states = args[0] if args else kwargs["hidden_states"]
            self._calls.append((args, kwargs))
            self._n_kept += states[..., 0].numel()

    def search(self, rules: GridRules, hessian: Tensor) -> tuple[float, Tensor]:
        """The feed's ratio and its scale [channels]. ``hessian`` is of the readers' inputs."""
        if not self._n_tokens:  # an expert that no token came to
            return 0.0, torch.ones(len(hessian), device=hessian.device)
        error_of = self._in_module(rules) if self._calls else self._in_linear(rules, hessian)
        assert isinstance(self._sum, Tensor)
        try:
            return search(self._sum / self._n_tokens, error_of)
        except BuildError as err:
            raise BuildError(f"{self.feed.readers[0].name}: {err}") from err

    def _in_linear(self, rules: GridRules, hessian: Tensor) -> Callable[[Tensor], float]:
        weight = self.feed.readers[0].weight.float()
        return lambda scale: loss(weight, _rounded(weight, scale, rules), hessian)

    def _in_module(self, rules: GridRules) -> Callable[[Tensor], float]:
        """The summed squared error of the inspected module's outputs on the kept calls."""
        weights = [linear.weight.clone() for linear in self.feed.readers]
        wanted = [self._run(*call) for call in self._calls]

        def error(scale: Tensor) -> float:
            for linear, weight in zip(self.feed.readers, weights, strict=True):
                linear.weight.copy_(_rounded(weight.float(), scale, rules))
            lost = [
                (self._run(*call) - out).square().sum(dtype=torch.float64)
                for call, out in zip(self._calls, wanted, strict=True)
            ]
            for linear, weight in zip(self.feed.readers, weights, strict=True):
                linear.weight.copy_(weight)
            return float(torch.stack(lost).sum())

        return error

    def _run(self, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> Tensor:
        out = self._module(*args, **kwargs)
        states: Tensor = out[0] if isinstance(out, tuple) else out
        return states.float()


def _rounded(weight: Tensor, scale: Tensor, rules: GridRules) -> Tensor:
    """Q(W s)/s of W [out, in], float32."""
    grid = (rules.num_bits, rules.width(weight.shape[1]), rules.symmetric)
    return fake_quantize(weight * scale, *grid) / scale
