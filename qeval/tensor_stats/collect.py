"""Statistics of a running transformers model: weights, inputs of linears, keys and values.

Weights: of every linear but the head; a mixture's experts are linears, too (models/experts.py). A
weight that is packed (a kernel's own layout, bitsandbytes, torchao, ...) is read through its kernel:
the layer's answer to unit inputs is W^T, whatever the format.
Inputs: what the linears read, once where several read the same tensor. Keys and values: what the
attention hands to the cache, after the rotary embedding; of a layer that slides a window every token,
not only those that are left. Both before a row that rounds them does so. Nothing is kept of a window
but sums, so memory does not grow with their number.

Rounding noise is that of a min/max grid of each tensor: weights per output channel or group
(formats/affine.py), inputs per token, keys and values per token and head (engines/low_bits.py), all
with a zero point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qeval.engines.base import Internals
from qeval.engines.low_bits import fake_quantize as low_bits
from qeval.formats.affine import check_group_size, fake_quantize
from qeval.models.architectures import blocks_path
from qeval.models.experts import experts_as_linears, is_open
from qeval.models.linears import linears_of_any_format, widths
from qeval.tensor_stats.moments import Channels, Moments, Noise, moments, piece
from qeval.tensor_stats.rows import TOP_CHANNELS, Kind, TensorRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Round = Callable[[Tensor], Tensor]
_UNIT_ROWS = 256  # unit inputs that a packed layer answers at a time


@dataclass(frozen=True)
class Bits:
    """The grids that rounding noise is measured on."""

    weights: int = 4
    group_size: int = -1  # of weights: inputs that share a scale; -1: per output channel
    activations: int = 8
    kv_cache: int = 4


@dataclass
class _Stream:
    """One tensor over all windows."""

    modules: list[str] = field(default_factory=list)
    moments: Moments = field(default_factory=Moments)
    channels: Channels = field(default_factory=Channels)
    noise: Noise = field(default_factory=Noise)

    def add(self, rows: Tensor, rounded: Round) -> None:
        """``rows``: [n, channels], floating. Values that are not finite count as 0 in channels and
        noise."""
        for part in torch.split(rows, max(1, piece(rows) // rows.shape[1])):
            self.moments += (seen := moments(part))
            if seen.nonfinite:
                part = part.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            self.channels.add(part)
            self.noise.add(part, rounded(part))


def collect(
    inside: Internals,
    windows: Sequence[Sequence[int]],
    bits: Bits,
    progress: Callable[[int, int, str], None],
) -> tuple[list[TensorRow], tuple[str, ...]]:
    """The rows in the model's order (weights, inputs, key, value of each block; tensors outside the
    blocks first), and notes on what is not in them.

    Raises:
        BuildError: ``bits.group_size`` does not divide the inputs of every linear.
    """
    with experts_as_linears(inside.model), torch.no_grad():  # not inference_mode: quanto cannot
        return _collect(inside, windows, bits, progress)


def _collect(
    inside: Internals,
    windows: Sequence[Sequence[int]],
    bits: Bits,
    progress: Callable[[int, int, str], None],
) -> tuple[list[TensorRow], tuple[str, ...]]:
    model = inside.model
    layers, path = dict(linears_of_any_format(model)), blocks_path(model)
    check_group_size({name: _widths(m)[0] for name, m in layers.items()}, bits.group_size)
    inputs, cache = _Inputs(bits.activations), _Cached(bits.kv_cache)
    with inputs.watching(layers):
        for i, window in enumerate(windows):
            ids = torch.tensor([list(window)], dtype=torch.long, device=model.device)
            kept = cache.listen(inside.new_cache())
            model(input_ids=ids, past_key_values=kept, use_cache=True, logits_to_keep=1)
            inputs.forget()
            progress(i + 1, len(windows), "windows")
    weights, unread = _weights(layers, inputs.seen, bits, progress)
    rows = [_row("weight", path, stream) for stream in weights]
    rows += [_row("input", path, stream) for stream in inputs.streams.values()]
    for layer, (keys, values) in sorted(cache.streams.items()):
        rows += [_row("key", path, keys, layer), _row("value", path, values, layer)]
    rows.sort(key=lambda row: -1 if row.layer is None else row.layer)  # stable: kinds stay in order
    return rows, tuple(_notes(model, layers, unread))


# The layers


def _widths(linear: nn.Module) -> tuple[int, int]:
    sizes = widths(linear)
    assert sizes is not None
    return sizes


# Activations


class _Inputs:
    """What the linears read. A tensor that several linears read one after the other is one stream."""

    def __init__(self, num_bits: int) -> None:
        self.streams: dict[str, _Stream] = {}  # by the first linear that reads it
        self._round = lambda x: low_bits(x.float(), num_bits, x.shape[-1])
        self.seen: dict[str, Tensor] = {}  # by linear: an empty tensor of its inputs' dtype and device
        self._last: tuple[Tensor | None, str] = (None, "")  # held, so that its identity is not reused

    @contextmanager
    def watching(self, layers: dict[str, nn.Module]) -> Iterator[None]:
        with ExitStack() as hooks:
            for name, module in layers.items():
                handle = module.register_forward_pre_hook(self._hook(name), prepend=True)
                hooks.callback(handle.remove)
            yield

    def forget(self) -> None:
        self._last = (None, "")

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[object, ...]], None]:
        def see(_: nn.Module, args: tuple[object, ...]) -> None:
            if not args or not isinstance(args[0], Tensor) or not args[0].numel():
                return  # the last: an expert to which no token is routed
            before, owner = self._last
            if before is not args[0]:
                owner = name
                self._last = args[0], owner
                stream = self.streams.setdefault(owner, _Stream())
                stream.add(args[0].reshape(-1, args[0].shape[-1]), self._round)
            if name not in self.seen:
                self.seen[name] = args[0].new_empty(0)
                self.streams[owner].modules.append(name)

        return see


class _Cached:
    """Listens to what each attention hands to a cache."""

    def __init__(self, num_bits: int) -> None:
        self.streams: dict[int, tuple[_Stream, _Stream]] = {}  # by layer: keys, values
        self._bits = num_bits

    def listen(self, cache: Any) -> object:
        """The cache, whose ``update`` (keys, values, layer_idx, ...) is heard from now on."""
        update = cache.update

        def heard(
            keys: Tensor, values: Tensor, layer_idx: int, *args: object, **kwargs: object
        ) -> object:
            self._see(layer_idx, keys, values)
            return update(keys, values, layer_idx, *args, **kwargs)

        cache.update = heard
        return cache

    def _see(self, layer: int, *pair: Tensor) -> None:
        """``pair``: keys and values, [1, heads, tokens, head_dim]."""
        streams = self.streams.setdefault(layer, (_Stream(), _Stream()))
        for stream, x in zip(streams, pair, strict=True):
            tokens = x.transpose(1, 2).flatten(0, 1)  # [tokens, heads, head_dim]
            stream.add(tokens.flatten(1), partial(self._round, tokens.shape[-1]))

    def _round(self, head_dim: int, rows: Tensor) -> Tensor:
        return low_bits(rows.float(), self._bits, head_dim, half_scales=True)


# Weights


def _weights(
    layers: dict[str, nn.Module],
    seen: dict[str, Tensor],
    bits: Bits,
    progress: Callable[[int, int, str], None],
) -> tuple[list[_Stream], list[str]]:
    """A stream of each weight, and the names of those that cannot be read."""
    streams, unread = [], []
    for i, (name, module) in enumerate(layers.items()):
        weight = read_weight(module, seen.get(name))
        if weight is None:
            unread.append(name)
        else:
            stream = _Stream([name])
            stream.add(weight, lambda w: fake_quantize(w, bits.weights, bits.group_size, False))
            streams.append(stream)
        progress(i + 1, len(layers), "weights")
    return streams, unread


def read_weight(module: nn.Module, like: Tensor | None) -> Tensor | None:
    """[out_features, in_features] of a linear, floating: its own, or what a packed one multiplies by,
    in the precision of its kernel. None where the layer does not answer, or not linearly.

    ``like``: a tensor of the dtype and device of the layer's inputs; None: it has had none.
    """
    from transformers.pytorch_utils import Conv1D

    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and type(weight.data) in (Tensor, nn.Parameter):
        floats = weight.is_floating_point() and weight.element_size() > 1
        if floats and weight.dim() == 2 and weight.device.type != "meta":
            return weight.data.T if isinstance(module, Conv1D) else weight.data
    try:
        return None if like is None else _answers(module, like)
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError) as err:
        print(f"{type(module).__name__}: weight not read: {err}")  # to the job's log
        return None


def _answers(module: nn.Module, like: Tensor) -> Tensor | None:
    """W from the layer's answers to unit inputs, its bias put aside. A layer that does not answer twice
    the input with twice the output (a bias somewhere else, static activation scales) is not read."""
    size, rows = _widths(module)[0], []
    with _without_bias(module):
        for start in range(0, size, _UNIT_ROWS):
            units = like.new_zeros((min(_UNIT_ROWS, size - start), size))
            units.diagonal(start).fill_(1)
            rows.append(module(units))
            if not start and not torch.allclose(module(2 * units), 2 * rows[0], rtol=0.01):
                return None
    return torch.cat(rows).T  # [out, in]


@contextmanager
def _without_bias(module: nn.Module) -> Iterator[None]:
    holders: tuple[Any, ...] = (module._parameters, module._buffers, vars(module))
    for holder in holders:
        if isinstance(bias := holder.get("bias"), Tensor):
            holder["bias"] = None
            try:
                yield
            finally:
                holder["bias"] = bias
            return
    yield


# The rows


def _row(kind: Kind, path: str | None, stream: _Stream, layer: int | None = None) -> TensorRow:
    """``layer``: of a key or a value; other tensors are placed by their modules' names."""
    places = [_place(path, name) for name in stream.modules]
    found, channels = stream.moments, stream.channels.absmax
    assert channels is not None
    top = channels.topk(min(TOP_CHANNELS, len(channels)))
    median = float(channels.double().quantile(0.5))
    largest = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    seen = found.n > 0
    return TensorRow(
        kind=kind,
        layer=layer if not places else places[0][0],
        name=_together([name for _, name in places]),
        modules=tuple(stream.modules),
        count=found.n,
        nonfinite=found.nonfinite,
        absmax=found.absmax if seen else None,
        mean=found.mean if seen else None,
        std=found.std,
        kurtosis=found.kurtosis,
        outlier=largest[0][1] / median if median else None,
        channel=largest[0][0] if seen else None,
        channels=len(channels),
        top_channels=largest,
        sqnr_db=stream.noise.db,
    )


def _place(path: str | None, name: str) -> tuple[int | None, str]:
    """The index of the block that a module is in, and its name there."""
    if path is None or not name.startswith(f"{path}."):
        return None, name
    index, _, inner = name.removeprefix(f"{path}.").partition(".")
    return int(index), inner


def _together(names: Sequence[str]) -> str:
    """``mlp.gate_proj``, ``mlp.up_proj`` -> ``mlp.gate_proj,up_proj``."""
    if not names:
        return ""
    folder = names[0].rpartition(".")[0]
    same = [n.removeprefix(f"{folder}.") if n.rpartition(".")[0] == folder else n for n in names[1:]]
    return ",".join([names[0], *same])


def _elsewhere(module: nn.Module) -> bool:
    """Whether its own weights are in the rows, or none of a linear: open experts, embeddings."""
    return isinstance(module, nn.Embedding) or is_open(module)


def _notes(
    model: PreTrainedModel, layers: dict[str, nn.Module], unread: Sequence[str]
) -> Iterator[str]:
    if unread:
        kernel = type(layers[unread[0]]).__name__
        yield f"{len(unread)} packed weights not read (first {unread[0]}, {kernel})"
    known = {*layers.values(), model.get_output_embeddings()}
    rest = [m for m in model.modules() if m not in known and not _elsewhere(m)]
    other = sum(p.numel() for m in rest for p in m.parameters(recurse=False) if p.dim() > 1)
    inside = sum(math.prod(_widths(m)) for m in layers.values())
    if other > 0.05 * (inside + other):
        yield (
            f"{other / (inside + other):.0%} of the weights are in no linear layer (fused experts, "
            "convolutions): their statistics are not shown"
        )
