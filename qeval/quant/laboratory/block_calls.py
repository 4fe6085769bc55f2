"""What a model's decoder blocks are called with, recorded from the model itself.

The model runs as it is, with blocks that only write down their arguments (masks, positions, rotary
embeddings, whatever the family has), so no family's forward is written a second time here, and blocks
that are called differently (a sliding window on every other one) each get their own arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qeval.core.errors import BuildError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Call:
    """What a block is called with beside its hidden states."""

    args: tuple[object, ...]
    kwargs: dict[str, object]


@dataclass
class Calls:
    """Every call of every block, by window. Equal tensors are kept once."""

    states: list[Tensor] = field(default_factory=list)  # [1, tokens, hidden], input of the next block
    blocks: list[list[Call]] = field(default_factory=list)  # [window][block]


class Enough(Exception):
    """Ends a forward pass whose rest is not needed."""


def record_calls(
    model: PreTrainedModel, blocks: Sequence[nn.Module], windows: Sequence[Sequence[int]]
) -> Calls:
    """Run the model up to its first block on each window, and see what every block is called with."""
    longest, positions = max(map(len, windows)), getattr(model.config, "max_position_embeddings", None)
    if positions is not None and longest > positions:
        raise BuildError(
            f"calibration windows of {longest} tokens, but the model has {positions} positions: set "
            f"calibration seq_len to {positions} or less"
        )
    calls, kept = Calls(), _Distinct()
    with ExitStack() as patches:
        recorders = [_Recorder(block, last=block is blocks[-1]) for block in blocks]
        for recorder in recorders:
            patches.enter_context(recorder.patched())
        for window in windows:
            with suppress(Enough):
                model(input_ids=torch.tensor([list(window)]), use_cache=False)
            calls.states.append(recorders[0].states)
            calls.blocks.append([kept.call(r.call) for r in recorders])
            kept.next_pass()
    return calls


class _Recorder:
    """Stands in for a block's forward and notes what it is called with."""

    def __init__(self, block: nn.Module, last: bool) -> None:
        self._block, self._last = block, last

    @contextmanager
    def patched(self) -> Iterator[None]:
        self._block.forward = self
        try:
            yield
        finally:
            del self._block.forward

    def __call__(self, *args: Any, **kwargs: object) -> object:
        if args:
            self.states, rest = args[0], args[1:]
        else:
            self.states, rest = kwargs.pop("hidden_states"), ()
        self.call = Call(rest, kwargs)
        if self._last:
            raise Enough
        return (self.states,)  # some models take its first element; to the next recorder it is all one


class _Distinct:
    """Hands out one tensor for all equal ones: the masks of 128 windows are one mask."""

    def __init__(self) -> None:
        self._known: list[Tensor] = []
        self._seen: dict[
            int, tuple[Tensor, Tensor]
        ] = {}  # of this pass, by id; held, so ids stay taken

    def next_pass(self) -> None:
        self._seen.clear()

    def call(self, call: Call) -> Call:
        return Call(map_tensors(call.args, self._one), map_tensors(call.kwargs, self._one))

    def _one(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._seen:
            same = (k for k in self._known if k.dtype == tensor.dtype and torch.equal(k, tensor))
            found = next(same, None)
            if found is None:
                self._known.append(found := tensor)
            self._seen[id(tensor)] = tensor, found
        return self._seen[id(tensor)][1]


def map_tensors(value: object, change: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with every tensor in its tuples, lists and dicts changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple | list):
        return type(value)(map_tensors(v, change) for v in value)
    if isinstance(value, dict):
        return {k: map_tensors(v, change) for k, v in value.items()}
    return value
